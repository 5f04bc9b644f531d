"""Qwen-VL, stage 2: everything learns from seven tasks at once, at 448 px.

    foveal train recipes/qwen_vl/2_multitask.py --set data=FOLDER
    foveal train recipes/qwen_vl/2_multitask.py --set size=tiny

Begins with what stage 1 left in build/qwen_vl/align/model, or with `model`. Values: Bai et al. 2023, "Qwen-VL".
Section 3.2: seven tasks, 448 px, everything trained, samples of one task packed to 2048 tokens. Appendix (table of
training settings) and table of tasks: 5e-5 to 1e-5 after 400 steps, 19,000 steps of 4096, tower decay 0.95; the shares
are its numbers of samples, in millions. Both tables are cited from memory and were not compared with the paper again.
Our packs mix tasks, which attend each within its sample.
"""

from pathlib import Path

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Pixels, Stage

WEIGHTS = {
    "caption": 19.7,
    "vqa": 3.6,
    "grounding": 3.5,
    "referring": 8.7,
    "grounded_caption": 8.7,
    "ocr": 24.8,
    "text": 7.8,
}
TOYS = {
    "caption": "caption",
    "vqa": "vqa",
    "grounding": "find",
    "referring": "refer",
    "grounded_caption": "grounded",
    "ocr": "read",
    "text": "text",
}
TRAINABLE = (("adapter.positions", False), ("*", 5e-5))


def run(
    size: Size = "full", model: str | None = None, data: str | None = None, folder: Path = Path("build/qwen_vl")
) -> Run:
    stage = Stage(
        name="multitask",
        data=sets(size, data, WEIGHTS, TOYS),
        steps=19_000,
        batch=4096,
        pixels=Pixels(side_px=448),
        trainable=TRAINABLE,
        tower_decay=0.95,
        warmup=400,
        floor=0.2,  # 5e-5 to 1e-5
        weight_decay=0.05,
        betas=(0.9, 0.98),
        eps=1e-6,
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        max_tokens=2048,
        save_every=200,
    )
    before = folder / "align" / "model"
    return Run(model=begin("qwen_vl", size, model, before), stages=(in_size(size, stage),), folder=folder)
