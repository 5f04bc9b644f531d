"""Qwen-VL, stage 3: instructions and conversations; the tower is frozen.

    foveal train recipes/qwen_vl/3_chat.py --set data=FOLDER
    foveal train recipes/qwen_vl/3_chat.py --set size=tiny

Begins with what stage 2 left in build/qwen_vl/multitask/model, or with `model`. Values: Bai et al. 2023, "Qwen-VL".
Section 3.3: 350,000 samples, frozen tower, batch 128, 1e-5 to 1e-6 after 3000 steps. 8000 steps and the rest are the
appendix's (table of training settings), cited from memory and not compared with the paper again. Answers and the tokens
around turns are learned, as the release does.
"""

from pathlib import Path

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Pixels, Stage
from foveal.train.task import NextToken

TRAINABLE = (("vision.*", False), ("adapter.positions", False), ("adapter.*", 1e-5), ("language.*", 1e-5))


def run(
    size: Size = "full", model: str | None = None, data: str | None = None, folder: Path = Path("build/qwen_vl")
) -> Run:
    stage = Stage(
        name="chat",
        data=sets(size, data, {"chat": 1.0}, {"chat": "find"}),
        task=NextToken(labels="published"),
        steps=8000,
        batch=128,
        pixels=Pixels(side_px=448),
        trainable=TRAINABLE,
        warmup=3000,
        floor=0.1,  # 1e-5 to 1e-6
        weight_decay=0.05,
        betas=(0.9, 0.98),
        eps=1e-6,
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        max_tokens=2048,
        save_every=500,
    )
    before = folder / "multitask" / "model"
    return Run(model=begin("qwen_vl", size, model, before), stages=(in_size(size, stage),), folder=folder)
