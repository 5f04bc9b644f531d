"""DeepSeek-VL, stage 3: instructions; language model, adapter and SigLIP tower learn, the SAM tower is frozen.

    foveal train recipes/deepseek_vl/3_chat.py --set data=FOLDER
    foveal train recipes/deepseek_vl/3_chat.py --set size=tiny

Begins with what stage 2 left in build/deepseek_vl/joint/model, or with `model`. Values: Lu et al. 2024,
"DeepSeek-VL", Table 4, the same for 1.3B and 7B: 2e-5, cosine, 256 steps of warm-up, 10,000 steps of 256 samples of up
to 4096 tokens, AdamW (0.9, 0.95), no weight decay, clipping at 1. Section 3.2.3: only answers and special tokens are
learned, SAM stays frozen for lack of memory. 1.3B has no SAM: `--set released=1.3b`. Not published: where the cosine
ends (here: 0), the share of text, and the type of numbers.
"""

from pathlib import Path
from typing import Literal

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Stage

TRAINABLE = (
    ("vision.unused.*", False),  # tensors that the files have and the network does not use
    ("vision.low.*", 2e-5),
    ("adapter.*", 2e-5),
    ("language.*", 2e-5),
)


def run(
    size: Size = "full",
    released: Literal["1.3b", "7b"] = "7b",
    model: str | None = None,
    data: str | None = None,
    folder: Path = Path("build/deepseek_vl"),
) -> Run:
    stage = Stage(
        name="chat",
        data=sets(size, data, {"chat": 0.5, "text": 0.5}, {"chat": "caption", "text": "text"}),
        steps=10_000,
        batch=256,
        trainable=TRAINABLE if released == "1.3b" else (("vision.high.*", False), *TRAINABLE),
        schedule="cosine",
        warmup=256,
        floor=0.0,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        max_tokens=4096,
        save_every=500,
    )
    before = folder / "joint" / "model"
    return Run(model=begin("deepseek_vl", size, model, before), stages=(in_size(size, stage),), folder=folder)
