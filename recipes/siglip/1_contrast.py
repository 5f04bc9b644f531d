"""SigLIP from scratch: every pair of a picture and a text is judged by itself.

    foveal train recipes/siglip/1_contrast.py --set data=FOLDER files=FOLDER
    foveal train recipes/siglip/1_contrast.py --set size=tiny

Values: Zhai et al. 2023, "Sigmoid loss for language image pre-training". Section 3.2: scale and offset begin at 10 and
-10. Section 4: batches of 32,768 are enough, and a second beta of 0.95 keeps large ones stable. Adam 1e-3, weight decay
1e-4 and clipping at 1 are cited from memory (section 4, release code) and were not compared again. Steps (9 billion
pairs) and warm-up are ours. `files` is a released folder, for the vocabulary.
"""

from pathlib import Path

from foveal.families.siglip import FAMILY
from foveal.processing.pictures import PictureProcessor
from foveal.train.pairs import Contrast
from foveal.train.run import Fresh, Run
from foveal.train.shipped import Size, in_size, sets
from foveal.train.stage import Stage
from foveal.train.tiny import tiny

TRAINABLE = (("*", 1e-3),)


def run(
    size: Size = "full",
    released: str = "base-patch16-224",
    files: Path = Path(),
    data: str | None = None,
    folder: Path = Path("build/siglip"),
) -> Run:
    stage = Stage(
        name="contrast",
        data=sets(size, data, {"caption": 1.0}, {"caption": "caption"}),
        task=Contrast(kind="sigmoid"),
        steps=274_658,
        batch=32_768,
        trainable=TRAINABLE,
        warmup=10_000,
        floor=0.0,
        weight_decay=1e-4,
        betas=(0.9, 0.95),
        clip=1.0,
        dtype="bf16",
        checkpointing=True,
        save_every=1000,
    )
    changes = {"batch": 32, "steps": 300, "warmup": 30}
    model = tiny("siglip") if size == "tiny" else at_random(released, files)
    return Run(model=model, stages=(in_size(size, stage, **changes),), folder=folder)


def at_random(released: str, files: Path) -> Fresh:
    """A model of a released size with random weights and the vocabulary of the folder `files`."""
    config = FAMILY.size(released)
    return Fresh(family=FAMILY, config=config, processor=PictureProcessor.from_folder(files, FAMILY.processing(config)))
