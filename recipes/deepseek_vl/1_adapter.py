"""DeepSeek-VL, stage 1: only the adapter learns, from captions and documents.

    foveal train recipes/deepseek_vl/1_adapter.py --set model=FOLDER data=FOLDER
    foveal train recipes/deepseek_vl/1_adapter.py --set size=tiny

Values: Lu et al. 2024, "DeepSeek-VL", Table 4, the same for 1.3B and 7B: 1e-3, cosine, 128 steps of warm-up, 15,000
steps of 256 samples of up to 512 tokens, AdamW (0.9, 0.95), no weight decay, clipping at 1. Section 3.2.1: 1.25 million
captions and 2.5 million documents, which the shares follow; both towers and the language model are frozen. Not
published: where the cosine ends (here: 0) and the type of numbers. A pack of ours holds several whole samples.
`model` is a checkpoint in DeepSeek-VL's layout with the weights of the towers and of the language model.
"""

from pathlib import Path

from foveal.train.run import Run
from foveal.train.shipped import Size, begin, in_size, sets
from foveal.train.stage import Stage

TRAINABLE = (("vision.*", False), ("adapter.*", 1e-3), ("language.*", False))


def run(
    size: Size = "full", model: str | None = None, data: str | None = None, folder: Path = Path("build/deepseek_vl")
) -> Run:
    stage = Stage(
        name="adapter",
        data=sets(size, data, {"caption": 1.25, "ocr": 2.5}, {"caption": "caption", "ocr": "read"}),
        steps=15_000,
        batch=256,
        trainable=TRAINABLE,
        schedule="cosine",
        warmup=128,
        floor=0.0,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        max_tokens=8192,
        save_every=500,
    )
    return Run(model=begin("deepseek_vl", size, model), stages=(in_size(size, stage),), folder=folder)
