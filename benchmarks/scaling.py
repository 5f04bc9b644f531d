"""How Foveal's cost grows, without peers: Linux, random weights, bfloat16, a CPU.

    OMP_NUM_THREADS=2 python benchmarks/scaling.py vision          # memory of the 2B tower: 4,096 and 16,384 patches
    OMP_NUM_THREADS=2 python benchmarks/scaling.py experts         # a step of DeepSeek-VL2-tiny beside a dense model
    OMP_NUM_THREADS=2 python benchmarks/scaling.py quantized int4  # memory of the 2B model in 4 bits

Decoding over a growing context: `foveal bench FOLDER --context 512 --context 2048 --context 8192`. `--alone` is that of
`engine.py`.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_weights import random_folder
from turns import Window

import foveal
from foveal.families.stand_in import known_family
from foveal.language.decoder import Decoder


def memory(name: str) -> float:
    """GB that /proc/self/status tells: VmHWM is the most so far, RssAnon what no file holds."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e9 if found else 0.0


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def vision_child(side_px: int) -> None:
    """Prints what the tower needs on top of its weights for one picture, in GB."""
    model = foveal.load(random_folder("qwen2_vl", "2b"))

    def see(side: int) -> int:
        packed = model.process(
            [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (side, side))}]}]
        )
        forget_peak()
        before = memory("VmRSS")
        with torch.inference_mode():
            model.prepared.see(packed)
        print(json.dumps({"patches": len(packed.patches), "peak": memory("VmHWM") - before}), flush=True)
        return len(packed.patches)

    see(112)  # whatever is made once
    see(side_px)


def vision() -> None:
    """Each size in a process of its own."""
    rows = []
    for side in (896, 1792):
        done = subprocess.run(
            [sys.executable, __file__, "vision", "--child", str(side)], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{rows[-1]['patches']} patches: {1000 * rows[-1]['peak']:.0f} MB over the weights", flush=True)
    small, large = rows
    print(f"{large['patches'] / small['patches']:.1f} x the patches, {large['peak'] / small['peak']:.2f} x the memory")


def language(config: Any) -> Decoder:
    """A language model of DeepSeek-VL2's family with random weights."""
    with torch.device("meta"):
        network = known_family("deepseek_vl2").build(config).language
    network = network.to(torch.bfloat16).to_empty(device="cpu")
    values = torch.empty(2**20).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        for parameter in network.parameters():
            flat = parameter.view(-1)
            for part in flat.split(len(values)):
                part.copy_(values[: len(part)]) if parameter.ndim > 1 else part.fill_(1.0)
    return network.eval()


class Steps:
    """Sequences that grow by one token a step."""

    def __init__(self, network: Decoder, requests: int, context: int) -> None:
        self.network, self.requests = network, requests
        self.cache = network.new_cache(requests, capacity=context + 128)
        starts = [context * n for n in range(requests + 1)]
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, 1000, (context * requests,), generator=generator)
        positions = torch.arange(context).repeat(1, requests)
        self.run(ids, positions, starts)
        self.tokens = torch.full((requests,), 7)

    @torch.inference_mode()
    def run(self, ids: torch.Tensor, positions: torch.Tensor, starts: list[int]) -> torch.Tensor:
        hidden = self.network(self.network.embed(ids), positions, starts, cache=self.cache)
        return self.network.logits(hidden[torch.tensor(starts[1:]) - 1]).argmax(-1)

    def step(self) -> float:
        begun = time.perf_counter()
        positions = torch.tensor(self.cache.lengths)[None]
        # Random weights soon say one token again and again, with the same experts; so the next one is taken instead.
        self.tokens = (self.run(self.tokens, positions, list(range(self.requests + 1))) + 1) % 1000
        return time.perf_counter() - begun


def experts(alone: list[str], steps: int = 40) -> None:
    """DeepSeek-VL2-tiny's language model beside one whose MLPs are as wide as what a token reaches of its experts."""
    config = known_family("deepseek_vl2").size("vl2-tiny")
    mixture = config.language.mixture
    if mixture is None:
        sys.exit("vl2-tiny has no experts")
    width = (mixture.routing.chosen + mixture.shared) * mixture.width
    plain = replace(config, language=replace(config.language, mixture=None, mlp_width=width))
    with_experts, dense = language(config), language(plain)
    reached = config.language.parameters - (mixture.routing.experts - mixture.routing.chosen) * 3 * (
        mixture.width * config.language.width * (config.language.depth - mixture.first)
    )
    print(
        f"parameters a token reaches: {reached / 1e6:.0f} M, of the dense model {plain.language.parameters / 1e6:.0f} M"
    )
    for requests in (1, 8):
        sides = [Steps(with_experts, requests, 256), Steps(dense, requests, 256)]
        with Window(alone):
            times = np.array([[side.step() for side in sides] for _ in range(steps)])[4:]
        ratios = times[:, 0] / times[:, 1]
        low, high = np.percentile(ratios, (10, 90))
        print(
            f"{requests} at once: experts {1000 * median(times[:, 0]):.1f} ms, dense "
            f"{1000 * median(times[:, 1]):.1f} ms, {median(ratios):.2f} x (10 % to 90 %: {low:.2f} to {high:.2f})",
            flush=True,
        )


def quantized(form: str) -> None:
    """Memory of a process that answers text with a rounded model; the tower is never read."""
    model = foveal.load(random_folder("qwen2_vl", "2b"), quantize=form)
    opened = memory("VmHWM")
    forget_peak()
    model.generate(
        model.process([{"role": "user", "content": "the " * 300}]), max_tokens=32, temperature=0, ignore_eos=True
    )
    weights = sum(b.nbytes for b in model.prepared.language.buffers()) + sum(
        p.nbytes for p in model.prepared.language.parameters()
    )
    print(
        f"{form}: {memory('VmRSS'):.2f} GB now ({memory('RssAnon'):.2f} of it not in files), {memory('VmHWM'):.2f} at "
        f"most while answering, {opened:.2f} while opening; tensors of the language model {weights / 1e9:.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("vision", "experts", "quantized"))
    parser.add_argument("form", nargs="?", choices=("int8", "int4"), default="int4")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=shlex.split, default=[], help="command that keeps other work away")
    given = parser.parse_args()
    if given.what == "vision":
        vision_child(given.child) if given.child else vision()
    elif given.what == "experts":
        experts(given.alone)
    else:
        quantized(given.form)


if __name__ == "__main__":
    main()
