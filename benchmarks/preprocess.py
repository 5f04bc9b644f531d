"""JPEG bytes to patches: ours against transformers' PIL processor, decoding included on both sides.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/preprocess.py

Both sides take turns in one process on one core, and processor time is counted, so that a busy machine
favours neither. Before timing, the values of both are compared: they must be equal bit for bit. Writes
benchmarks/results/preprocess.md.
"""

import argparse
import io
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import PIL
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from foveal.core.media import MediaBudget
from foveal.processing.media import open_image
from foveal.processing.patches import Normalize, image_patches
from foveal.processing.resize import PatchGrid, Resize

SIZES = [(1152, 864), (2000, 1500), (2828, 2121), (4032, 3024)]  # 1, 3, 6 and 12 Mpx
LIMITS = {
    "1280 tokens (the processor class's default)": 28 * 28 * 1280,
    "16384 tokens (as published with Qwen2-VL)": 12845056,
}
CLIP = Normalize(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
RESULT = Path(__file__).parent / "results" / "preprocess.md"


def jpeg(width: int, height: int) -> bytes:
    """A picture with large shapes, edges and sensor noise: about 2 bits a pixel at quality 85, like a photograph."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 48 + 2, width // 48 + 2, 3), dtype=np.uint8)
    shapes = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = rng.normal(0, 6, (height, width, 1)).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray((shapes + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def ours(data: bytes, grid: PatchGrid, resize: Resize) -> np.ndarray:
    picture = open_image(data, budget=MediaBudget())
    return image_patches(picture, grid=grid, normalize=CLIP, resize=resize)[0]


def theirs(data: bytes, processor: Qwen2VLImageProcessorPil) -> np.ndarray:
    return processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]


def interleaved(ways: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of processor time of each way; the ways take turns, and who begins changes."""
    spent: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for step in range(len(ways)):
            which = (turn + step) % len(ways)
            begun = time.process_time()
            ways[which]()
            if turn:  # the first turn warms up
                spent[which].append(1000 * (time.process_time() - begun))
    return [median(s) for s in spent]


def rows(repeats: int) -> list[str]:
    lines = []
    for label, limit in LIMITS.items():
        grid = PatchGrid(max_px=limit)
        processor = Qwen2VLImageProcessorPil(size={"shortest_edge": grid.min_px, "longest_edge": limit})
        for width, height in SIZES:
            data = jpeg(width, height)
            exact, reference = ours(data, grid, "exact"), theirs(data, processor)
            if not np.array_equal(exact, reference):
                sys.exit(f"{width}x{height}: values differ by {np.abs(exact - reference).max()}; nothing was timed.")
            off = (np.abs(ours(data, grid, "fast") - exact).reshape(-1, 3, 392).max((0, 2)) * 255 * CLIP.std).max()
            del exact, reference
            peer, own, fast = interleaved(
                [
                    lambda d=data, p=processor: theirs(d, p),
                    lambda d=data, g=grid: ours(d, g, "exact"),
                    lambda d=data, g=grid: ours(d, g, "fast"),
                ],
                repeats,
            )
            processed = "x".join(map(str, grid.size(width, height)))
            lines.append(
                f"| {label} | {width}x{height} | {len(data) / 1e6:.1f} | {processed} | {peer:.1f} | {own:.1f} | "
                f"**{peer / own:.2f}x** | {fast:.1f} | {peer / fast:.2f}x | {off:.1f} |"
            )
            print(lines[-1], flush=True)
    return lines


def conditions(repeats: int) -> str:
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=here, check=False
    )
    timed = [f"../src/foveal/processing/{name}.py" for name in ("media", "image", "resize", "patches", "fast_resize")]
    dirty = subprocess.run(
        ["git", "status", "--porcelain", *timed], capture_output=True, text=True, cwd=here, check=False
    )
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        cpu = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"Commit {commit.stdout.strip()}{' with changes' if dirty.stdout.strip() else ''}, "
        f"{time.strftime('%Y-%m-%d')}. "
        f"{cpu}, {cores} core(s), load {os.getloadavg()[0]:.1f} at the start. Python {platform.python_version()}, "
        f"Pillow {PIL.__version__}, numpy {np.__version__}, transformers {transformers.__version__}. "
        f"Medians of {repeats} turns, sides interleaved in one process."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="turns that are timed")
    repeats = parser.parse_args().repeats
    state = conditions(repeats)
    table = rows(repeats)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        "# JPEG bytes to patches\n\n"
        "Exact: Pillow's pixels; values equal transformers' `Qwen2VLImageProcessorPil` bit for bit (checked first).\n"
        'Fast: `resize="fast"`, opt-in; the last column is its largest difference in levels of 0..255.\n'
        "Processor time in ms.\n\n"
        "    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/preprocess.py\n\n"
        f"{state}\n\n"
        "| limit | picture | MB | seen at | transformers | exact | ratio | fast | ratio | levels |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(table) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
