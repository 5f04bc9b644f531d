"""Foveal beside transformers on one checkpoint of Qwen2-VL-2B's shape with random weights, both in bfloat16 on a CPU.

    python benchmarks/random_weights.py qwen2_vl 2b
    OMP_NUM_THREADS=2 python benchmarks/transformers_speed.py decode decode8 prefill vision vision1036 first
    OMP_NUM_THREADS=2 python benchmarks/transformers_speed.py memory start

Both sides get the same token ids and patches, made beforehand, and run in turns in one process; `memory` and `start`
run each side in fresh processes. Times per token of decoding are those of a long answer less those of a short one.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.paired import Paired, paired
from benchmarks.random_weights import ROOT

FOLDER = ROOT / "qwen2_vl-2b"
RAGGED = (16, 48, 80, 112, 160, 224, 320, 448)
LONG, SHORT = 17, 1


def ours(*, ready: bool = True) -> Any:
    """The model; `ready`: all weights are in their inference form already, as after its first answers."""
    import foveal
    from foveal.engine.options import EngineOptions
    from foveal.engine.prepare import prepare

    # Nothing is remembered from one round to the next.
    options = EngineOptions(prefix_cache=False, vision_cache_bytes=0, step_tokens=4096)
    model = foveal.load(FOLDER, device="cpu", engine=options, prepare=True)
    if ready:
        prepare(model.network)
    return model


def theirs() -> Any:
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()


def text(lengths: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """Prompts of random ids: packed for us, padded on the left for them."""
    import foveal

    random = np.random.default_rng(0)
    rows = [random.integers(100, 1000, n) for n in lengths]
    packed = foveal.join([_text(row) for row in rows])
    longest = max(lengths)
    ids = np.stack([np.concatenate((np.zeros(longest - len(r), np.int64), r)) for r in rows])
    mask = np.stack([np.concatenate((np.zeros(longest - len(r), np.int64), np.ones(len(r), np.int64))) for r in rows])
    return packed, {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def _text(ids: Any) -> Any:
    from foveal.core.packed import Packed

    return Packed(
        tokens=ids.astype(np.int64),
        positions=np.tile(np.arange(len(ids)), (3, 1)),
        starts=np.array([0, len(ids)]),
        deltas=np.array([0]),
        patches=np.zeros((0, 1176), np.float32),
        grids=np.zeros((0, 3), np.int64),
    )


def picture(model: Any, side: int, words: int) -> tuple[Any, dict[str, Any]]:
    """A square picture of noise and a question of about `words` tokens."""
    from PIL import Image

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    content = [{"type": "image", "image": noise}, {"type": "text", "text": "a " * words}]
    packed = model.process([{"role": "user", "content": content}], max_pixels=side**2)
    ids = torch.from_numpy(packed.tokens)[None]
    kinds = torch.zeros_like(ids)
    for run in packed.runs:
        kinds[0, run.start : run.start + run.length] = 1
    return packed, {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(packed.patches),
        "image_grid_thw": torch.from_numpy(packed.grids),
        "mm_token_type_ids": kinds,
    }


def answer(model: Any, packed: Any, tokens: int) -> Callable[[], object]:
    return lambda: model.generate(packed, max_tokens=tokens, temperature=0, ignore_eos=True)


def their_answer(model: Any, given: dict[str, Any], tokens: int) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model.generate(**given, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    return run


def decode(own: Any, other: Any, lengths: tuple[int, ...], rounds: int) -> Paired:
    packed, given = text(lengths)
    measured = paired(
        {
            "long": their_answer(other, given, LONG),
            "our long": answer(own, packed, LONG),
            "short": their_answer(other, given, SHORT),
            "our short": answer(own, packed, SHORT),
        },
        rounds=rounds,
    ).seconds
    return Paired(
        {
            "transformers": [a - b for a, b in zip(measured["long"], measured["short"], strict=True)],
            "Foveal": [a - b for a, b in zip(measured["our long"], measured["our short"], strict=True)],
        }
    )


def once(own: Any, other: Any, packed: Any, given: dict[str, Any], rounds: int) -> Paired:
    return paired(
        {"transformers": their_answer(other, given, 1), "Foveal": answer(own, packed, 1)}, rounds=rounds, warm=1
    )


def tower(own: Any, other: Any, side: int, rounds: int) -> Paired:
    packed, given = picture(own, side, 1)

    def their_tower() -> object:
        with torch.inference_mode():
            return other.model.visual(given["pixel_values"].bfloat16(), grid_thw=given["image_grid_thw"])

    def our_tower() -> object:
        with torch.inference_mode():
            return own.network.see(packed)

    return paired({"transformers": their_tower, "Foveal": our_tower}, rounds=rounds)


PROGRAMS = {
    "transformers": "import torch\nfrom benchmarks.transformers_speed import *\nmodel = theirs()\n",
    "Foveal": "from benchmarks.transformers_speed import *\nmodel = ours(ready=False)\n",
}
PEAK = "\nprint('PEAK', int([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1]) / 1e6)"
FIRST = {
    "transformers": "their_answer(model, text((64,))[1], 1)()",
    "Foveal": "answer(model, text((64,))[0], 1)()",
}
WHOLE = {
    "transformers": "their_answer(model, text((1300,))[1], 2)()",
    "Foveal": "answer(model, text((1300,))[0], 2)()",
}


def process(code: str) -> tuple[float, float]:
    """Seconds of a fresh process, and its peak memory in GB."""
    root = Path(__file__).parent.parent
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + PEAK], env=env, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    return seconds, float(done.stdout.split("PEAK")[1])


def fresh(what: dict[str, str], rounds: int) -> tuple[Paired, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    peaks: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds):
        for name in list(PROGRAMS)[:: 1 if number % 2 == 0 else -1]:
            took, peak = process(PROGRAMS[name] + what[name])
            seconds[name].append(took)
            peaks[name].append(peak)
    return Paired(seconds), {name: median(values) for name, values in peaks.items()}


CASES = ("decode", "decode8", "prefill320", "prefill1300", "vision448", "vision1036", "first", "memory", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rounds = given.rounds
    print("| work | transformers | Foveal | ratio |\n| --- | --- | --- | --- |")
    own = other = None
    for case in given.cases:
        if case in ("memory", "start"):
            times, peaks = fresh(FIRST if case == "start" else WHOLE, rounds)
            print(times.line("process start to first token, 64 tokens" if case == "start" else "whole process"))
            print(f"| peak memory | {peaks['transformers']:.2f} GB | {peaks['Foveal']:.2f} GB | "
                  f"**{peaks['Foveal'] / peaks['transformers']:.2f} x** |", flush=True)  # fmt: skip
            continue
        if own is None:
            own, other = ours(), theirs()
        if case.startswith("decode"):
            lengths = RAGGED if case == "decode8" else (64,)
            result = decode(own, other, lengths, rounds)
            tokens = (LONG - SHORT) * len(lengths)
            print(result.line(f"decode, batch {len(lengths)}", per=tokens, unit="tokens/s", rate=True), flush=True)
        elif case.startswith("prefill"):
            length = int(case.removeprefix("prefill"))
            result = once(own, other, *text((length,)), rounds)
            print(result.line(f"prefill, {length} tokens"), flush=True)
        elif case.startswith("vision"):
            side = int(case.removeprefix("vision"))
            print(tower(own, other, side, rounds).line(f"tower, {side} px"), flush=True)
        else:
            print(
                once(own, other, *picture(own, 448, 45), rounds).line("first token, 448 px and 64 tokens"), flush=True
            )


if __name__ == "__main__":
    main()
