"""Qwen2-VL, stage 3: instructions; the tower is frozen.

    foveal train recipes/qwen2_vl/3_chat.py --set data=FOLDER
    foveal train recipes/qwen2_vl/3_chat.py --set size=tiny

Begins with what stage 2 left in build/qwen2_vl/everything/model, or with `model`. Wang et al. 2024, "Qwen2-VL",
section 2.2: the tower's parameters are locked and the language model is tuned; the merger learns with it, as the
authors' fine-tuning code does by default. The paper publishes which parts learn in which stage and how many tokens
they see, but no rates, batches or steps: those here are ours, to be changed for your data (`--set train.rate=...
train.batch=...`).
"""

from pathlib import Path

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Pixels, Stage

TRAINABLE = (("vision.*", False), ("adapter.*", 1e-5), ("language.*", 1e-5))


def run(
    size: Size = "full", model: str | None = None, data: str | None = None, folder: Path = Path("build/qwen2_vl")
) -> Run:
    stage = Stage(
        name="chat",
        data=sets(size, data, {"chat": 1.0}, {"chat": "find"}),
        steps=10_000,
        batch=128,
        pixels=Pixels(max_px=1280 * 28 * 28),
        trainable=TRAINABLE,
        warmup=300,
        floor=0.1,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        max_tokens=16_384,
        save_every=500,
    )
    before = folder / "everything" / "model"
    return Run(model=begin("qwen2_vl", size, model, before), stages=(in_size(size, stage),), folder=folder)
