"""Qwen-VL, stage 1: the tower and the resampler learn from captions, the language model is frozen.

    foveal train recipes/qwen_vl/1_align.py --set model=FOLDER data=FOLDER
    foveal train recipes/qwen_vl/1_align.py --set size=tiny            (a minute or two on two cores)

Values: Bai et al. 2023, "Qwen-VL". Section 3.1: 224 px, frozen language model, highest rate 2e-4, 50,000 steps of
30,720 samples. Appendix (table of training settings): cosine to 1e-6 after 500 steps, AdamW (0.9, 0.98, 1e-6), weight
decay 0.05, clipping at 1, decay of the tower's rates 0.95, bfloat16; the appendix is cited from memory and was not
compared with the paper again. `model` is a checkpoint in Qwen-VL's layout with the weights of Qwen-7B and of
OpenCLIP's ViT-bigG; `data` has the set `caption`. Pictures are 224 px here and 448 px from stage 2 on; the tables of
positions are resized on the way (bicubic).
"""

from pathlib import Path

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Pixels, Stage

TRAINABLE = (
    ("adapter.positions", False),  # a fixed table of sines
    ("vision.*", 2e-4),
    ("adapter.*", 2e-4),
    ("language.*", False),
)


def run(
    size: Size = "full", model: str | None = None, data: str | None = None, folder: Path = Path("build/qwen_vl")
) -> Run:
    stage = Stage(
        name="align",
        data=sets(size, data, {"caption": 1.0}, {"caption": "caption"}),
        steps=50_000,
        batch=30_720,
        pixels=Pixels(side_px=224),
        trainable=TRAINABLE,
        tower_decay=0.95,
        warmup=500,
        floor=0.005,  # 2e-4 to 1e-6
        weight_decay=0.05,
        betas=(0.9, 0.98),
        eps=1e-6,
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        max_tokens=8192,
        save_every=500,
    )
    return Run(model=begin("qwen_vl", size, model), stages=(in_size(size, stage),), folder=folder)
