"""JPEG bytes to patches: ours against transformers' PIL processor and its torchvision processor, decoding included.

    benchmarks/peers.sh torchvision                               # once; without it that peer is left out
    OMP_NUM_THREADS=2 python benchmarks/preprocess.py

The sides take turns in one run; wall time counts. Before timing, our exact values are compared with those of the PIL
processor: they must be equal bit for bit. Writes benchmarks/results/preprocess.md.
"""

import argparse
import base64
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from foveal.core.media import MediaBudget
from foveal.engine.bench.phases import jpeg
from foveal.processing import exact as exact_module
from foveal.processing import jpeg as jpeg_module
from foveal.processing.intake import Knobs
from foveal.processing.messages import ImagePart
from foveal.processing.native import NativeSize
from foveal.processing.patches import CLIP_COLOURS
from foveal.processing.resize import PatchGrid, Resize
from foveal.processing.sampling import Frames

CASES = [  # of 0.8, 1, 3 and 12 Mpx at the processor class's own limit; 12 Mpx at the one published with Qwen2-VL
    ((1024, 768), 28 * 28 * 1280),
    ((1152, 864), 28 * 28 * 1280),
    ((2000, 1500), 28 * 28 * 1280),
    ((4032, 3024), 28 * 28 * 1280),
    ((4032, 3024), 12845056),
]
ROOT = Path(__file__).parent
RESULT = ROOT / "results" / "preprocess.md"
TORCHVISION = Path(os.environ.get("PEERS_DIR", ROOT.parent / "build" / "peers")) / "torchvision" / "bin" / "python"
BUDGET = MediaBudget()


def ours(data: bytes, limit: int, resize: Resize) -> np.ndarray:
    vision = NativeSize(resize=PatchGrid(max_px=limit), normalize=CLIP_COLOURS, video=Frames())
    return vision.open(ImagePart(source=data), budget=BUDGET, knobs=Knobs(resize=resize), count=1).patches


def theirs(data: bytes, processor: Qwen2VLImageProcessorPil) -> np.ndarray:
    return processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]


class Torchvision:
    """transformers' torchvision processor in an environment of its own."""

    def __init__(self) -> None:
        side = str(ROOT / "sides" / "torchvision_side.py")
        self.process = subprocess.Popen(
            [str(TORCHVISION), side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def seconds(self, data: bytes, limit: int) -> float:
        """Of one turn."""
        question = {"do": "preprocess", "data": base64.b64encode(data).decode(), "limit": limit, "repeats": 1}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return float(self.answer()["seconds"][0])

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))


def clock(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def interleaved(ways: list[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Milliseconds of each turn of each way; the ways take turns, and who begins changes."""
    spent: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 2):
        for step in range(len(ways)):
            which = (turn + step) % len(ways)
            seconds = ways[which]()
            if turn > 1:  # the first two warm up
                spent[which].append(1000 * seconds)
    return spent


def rows(repeats: int) -> list[str]:
    lines = []
    other = Torchvision() if TORCHVISION.exists() else None
    for (width, height), limit in CASES:
        processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": limit})
        data = jpeg(width, height, rng=np.random.default_rng(0))
        exact, reference = ours(data, limit, "exact"), theirs(data, processor)
        if not np.array_equal(exact, reference):
            sys.exit(f"{width}x{height}: values differ by {np.abs(exact - reference).max()}; nothing was timed.")
        off = np.abs(ours(data, limit, "fast") - exact).reshape(-1, 3, 392).transpose(0, 2, 1)
        off = off * 255 * np.array(CLIP_COLOURS.std)
        levels = f"{off.max():.1f}, {off.mean():.2f}"
        del exact, reference, off
        ways = [
            lambda d=data, p=processor: clock(lambda: theirs(d, p)),
            lambda d=data, n=limit: clock(lambda: ours(d, n, "exact")),
            lambda d=data, n=limit: clock(lambda: ours(d, n, "fast")),
        ]
        if other is not None:
            ways.append(lambda d=data, n=limit: other.seconds(d, n))
        peer, own, fast, *vision = interleaved(ways, repeats)
        processed = "x".join(map(str, PatchGrid(max_px=limit).size(width, height)))
        second = f"{shown(vision[0])} | {ratio(vision[0], fast)}" if vision else "- | -"
        lines.append(
            f"| {width}x{height} | {processed} | {shown(peer)} | {shown(own)} | {ratio(peer, own)} | {shown(fast)} | "
            f"{second} | {levels} |"
        )
        print(lines[-1], flush=True)
    if other is not None and other.process.stdin is not None:
        other.process.stdin.close()
        other.process.wait()
    return lines


def shown(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def ratio(peer: list[float], own: list[float]) -> str:
    each = [a / b for a, b in zip(peer, own, strict=True)]
    return f"**{median(each):.2f}x** ({min(each):.2f} to {max(each):.2f})"


def conditions(repeats: int) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        cpu = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    compiled = "with" if exact_module.available() else "without"
    turbo = "with" if jpeg_module.simplejpeg is not None else "without"
    return (
        f"Commit {commit.stdout.strip()}, {time.strftime('%Y-%m-%d')}. {cpu}, {cores} cores. "
        f"Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {np.__version__}, "
        f"transformers {transformers.__version__}; ours {compiled} the C module, {turbo} simplejpeg. "
        f"Medians of {repeats} turns, in brackets their range, milliseconds of wall time."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="turns that are timed")
    repeats = parser.parse_args().repeats
    state = conditions(repeats)
    table = rows(repeats)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        "# JPEG bytes to patches\n\n"
        "Exact: Pillow's pixels; values equal transformers' `Qwen2VLImageProcessorPil` bit for bit (checked first).\n"
        'Fast: `resize="fast"`, opt-in; the last column is its difference in levels of 0..255, largest and mean.\n'
        "torchvision: transformers' `Qwen2VLImageProcessor`; the Python part of torchvision's CUDA build beside\n"
        "torch for CPUs, for want of a build for them (`benchmarks/peers.sh`).\n\n"
        "    OMP_NUM_THREADS=2 python benchmarks/preprocess.py\n\n"
        f"{state}\n\n"
        "| picture | seen at | transformers (PIL) | exact | ratio | fast | transformers (torchvision) | "
        "ratio to fast | levels |\n"
        "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(table) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
