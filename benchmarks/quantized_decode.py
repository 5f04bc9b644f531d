"""Decoding with 4- and 8-bit weights: Qwen2-VL-2B's language model with random weights, alone on two cores.

    python benchmarks/random_weights.py qwen2_vl 2b
    OMP_NUM_THREADS=2 python benchmarks/quantized_decode.py int4 [--context 512] [--batch 1 8] [--threads 2]

Prints seconds of rounding, tokens a second (median of steps), the share of the memory's read speed that the weights
alone take, and the memory of the process. Peers, in the same run, are in benchmarks/peers.py.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

import foveal
from foveal.engine.quantize import quantize_network
from foveal.families.quantize import settings
from foveal.nn.quantized_linear import QuantizedLinear

FOLDER = Path(__file__).parent.parent / "build" / "random" / "qwen2_vl-2b"


def read_speed(size: int = 1 << 30) -> float:
    """GB/s of reading memory from end to end with torch's threads."""
    block = torch.ones(size // 4, dtype=torch.int32)
    block.max()
    begun = time.perf_counter()
    for _ in range(3):
        block.max()
    return 3 * size / (time.perf_counter() - begun) / 1e9


def steps(model: foveal.Model, batch: int, context: int, seconds: float) -> list[float]:
    """Times of single decoding steps, sequences of `context` tokens."""
    language = model.network.language
    cache = language.new_cache(batch, capacity=context + 256)
    times: list[float] = []
    with torch.inference_mode():
        for sequence in range(batch):
            starts = [0] * (sequence + 1) + [context] * (batch - sequence)
            ids = torch.randint(0, 1000, (context,))
            positions = torch.arange(context).expand(3, -1)
            language(language.embed(ids), positions, starts, cache=cache)
        end = time.perf_counter() + seconds
        token = torch.full((batch,), 7)
        while time.perf_counter() < end and len(times) < 200:
            begun = time.perf_counter()
            at = torch.tensor(cache.lengths).expand(3, -1)
            hidden = language(language.embed(token), at, range(batch + 1), cache=cache)
            token = language.logits(hidden).argmax(-1)
            times.append(time.perf_counter() - begun)
    return times[2:]


def memory() -> tuple[float, float]:
    """GB that this process holds now, and without pages that lie in files."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.endswith("kB")}
    return int(fields["VmRSS"]) * 1024 / 1e9, int(fields["RssAnon"]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("int4", "int8", "bf16"))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = foveal.load(given.folder, device="cpu")
    if given.kind != "bf16":
        begun = time.perf_counter()
        quantize_network(model.network, settings(given.kind))
        print(f"rounded in {time.perf_counter() - begun:.1f} s")
    else:
        from foveal.engine.prepare import prepare

        prepare(model.network)
    layers = [m for m in model.network.language.modules() if isinstance(m, QuantizedLinear)]
    size = sum(b.nbytes for layer in layers for b in layer.buffers())
    speed = read_speed()
    total, own = memory()
    print(f"{len(layers)} layers, {size / 1e9:.3f} GB, computed by {sorted({m.how for m in layers})}")
    print(f"memory {total:.2f} GB, of which not in files {own:.2f} GB; reads {speed:.1f} GB/s")
    for batch in given.batch:
        times = steps(model, batch, given.context, given.seconds)
        middle = float(np.median(times))
        low, high = np.percentile(times, [10, 90])
        print(
            f"{given.kind} batch {batch} context {given.context}: {batch / middle:.1f} tokens/s "
            f"({batch / high:.1f} to {batch / low:.1f}), weights at {size / middle / 1e9:.1f} GB/s"
        )
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
