"""Qwen2-VL, stage 1: the tower with its merger learns from pictures and texts, the language model is frozen.

    foveal train recipes/qwen2_vl/1_vision.py --set model=FOLDER data=FOLDER
    foveal train recipes/qwen2_vl/1_vision.py --set size=tiny

Wang et al. 2024, "Qwen2-VL", section 2.2: 600 billion tokens of pairs of pictures and texts, reading, and
classification, of which texts alone are learned. `data` has the sets `caption` and `ocr`. The paper publishes which
parts learn in which stage and how many tokens they see, but no rates, batches or steps: those here are ours, to be
changed for your data (`--set train.rate=... train.batch=...`).
"""

from pathlib import Path

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Pixels, Stage

TRAINABLE = (("vision.*", 1e-4), ("adapter.*", 1e-4), ("language.*", False))


def run(
    size: Size = "full", model: str | None = None, data: str | None = None, folder: Path = Path("build/qwen2_vl")
) -> Run:
    stage = Stage(
        name="vision",
        data=sets(size, data, {"caption": 0.7, "ocr": 0.3}, {"caption": "caption", "ocr": "read"}),
        steps=50_000,
        batch=4096,
        pixels=Pixels(max_px=1280 * 28 * 28),
        trainable=TRAINABLE,
        warmup=500,
        floor=0.1,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        max_tokens=16_384,
        save_every=500,
    )
    return Run(model=begin("qwen2_vl", size, model), stages=(in_size(size, stage),), folder=folder)
