"""DeepSeek-VL, stage 2: language model and adapter learn from text and pictures, 7 to 3; the towers are frozen.

    foveal train recipes/deepseek_vl/2_joint.py --set data=FOLDER
    foveal train recipes/deepseek_vl/2_joint.py --set size=tiny

Begins with what stage 1 left in build/deepseek_vl/adapter/model, or with `model`. Lu et al. 2024, "DeepSeek-VL",
section 3.2 and the table of hyper-parameters (1.3B): 3e-5, lowered in steps, 96,000 steps of 1024 samples, packed.
The 7B model took 4.2e-5 and 42,000 steps of 2304: `--set train.rate=4.2e-5 train.steps=42000 train.batch=2304`.
"""

from pathlib import Path

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Stage

WEIGHTS = {"text": 0.7, "caption": 0.1, "vqa": 0.1, "ocr": 0.1}
TOYS = {"text": "text", "caption": "caption", "vqa": "vqa", "ocr": "read"}
TRAINABLE = (("vision.*", False), ("adapter.*", 3e-5), ("language.*", 3e-5))


def run(
    size: Size = "full", model: str | None = None, data: str | None = None, folder: Path = Path("build/deepseek_vl")
) -> Run:
    stage = Stage(
        name="joint",
        data=sets(size, data, WEIGHTS, TOYS),
        steps=96_000,
        batch=1024,
        trainable=TRAINABLE,
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
