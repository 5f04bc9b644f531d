"""DeepSeek-VL, stage 2: language model and adapter learn from text and pictures, 7 to 3; the towers are frozen.

    foveal train recipes/deepseek_vl/2_joint.py --set data=FOLDER
    foveal train recipes/deepseek_vl/2_joint.py --set size=tiny

Begins with what stage 1 left in build/deepseek_vl/adapter/model, or with `model`. Values: Lu et al. 2024,
"DeepSeek-VL", Table 4, for 7B, or for 1.3B with `--set released=1.3b`: 4.2e-5 (3e-5), 42,000 steps of 2304 samples
(96,000 of 1024), packed to 4096 tokens; rates fall in steps after 2000 of warm-up, AdamW (0.9, 0.95), no weight decay,
clipping at 1. Section 3.2.2 takes text and pictures 7 to 3; the caption of its Figure 4 says 3 to 7. The table does not
say when rates fall: times 0.316 at 80 % and at 90 % is DeepSeek LLM's (2024, section 2.3). Not published: the shares of
the sets with pictures, and the type of numbers.
"""

from pathlib import Path
from typing import Literal

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Stage

WEIGHTS = {"text": 0.7, "caption": 0.1, "vqa": 0.1, "ocr": 0.1}
TOYS = {"text": "text", "caption": "caption", "vqa": "vqa", "ocr": "read"}
VALUES = {"1.3b": (3e-5, 96_000, 1024), "7b": (4.2e-5, 42_000, 2304)}
"""Rate, steps and batch of the released sizes."""


def run(
    size: Size = "full",
    released: Literal["1.3b", "7b"] = "7b",
    model: str | None = None,
    data: str | None = None,
    folder: Path = Path("build/deepseek_vl"),
) -> Run:
    rate, steps, batch = VALUES[released]
    stage = Stage(
        name="joint",
        data=sets(size, data, WEIGHTS, TOYS),
        steps=steps,
        batch=batch,
        trainable=(("vision.*", False), ("adapter.*", rate), ("language.*", rate)),
        schedule="steps",
        warmup=2000,
        floor=0.0,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        max_tokens=4096,
        save_every=500,
    )
    before = folder / "adapter" / "model"
    return Run(model=begin("deepseek_vl", size, model, before), stages=(in_size(size, stage),), folder=folder)
