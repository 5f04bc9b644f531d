"""Qwen2-VL, stage 2: everything learns, from interleaved data, questions, grounding, documents and text.

    foveal train recipes/qwen2_vl/2_everything.py --set data=FOLDER
    foveal train recipes/qwen2_vl/2_everything.py --set size=tiny

Begins with what stage 1 left in build/qwen2_vl/vision/model, or with `model`. Wang et al. 2024, "Qwen2-VL", section
2.2 (800 billion tokens more). The paper publishes which parts learn in which stage and how many tokens they see, but
no rates, batches or steps: those here are ours, to be changed for your data (`--set train.rate=... train.batch=...`).
"""

from pathlib import Path

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Pixels, Stage

WEIGHTS = {"caption": 0.25, "vqa": 0.2, "grounding": 0.15, "ocr": 0.2, "text": 0.2}
TOYS = {"caption": "caption", "vqa": "vqa", "grounding": "find", "ocr": "read", "text": "text"}
TRAINABLE = (("*", 5e-5),)


def run(
    size: Size = "full", model: str | None = None, data: str | None = None, folder: Path = Path("build/qwen2_vl")
) -> Run:
    stage = Stage(
        name="everything",
        data=sets(size, data, WEIGHTS, TOYS),
        steps=50_000,
        batch=2048,
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
    before = folder / "vision" / "model"
    return Run(model=begin("qwen2_vl", size, model, before), stages=(in_size(size, stage),), folder=folder)
