"""CLIP from scratch: a picture finds its text among those of the batch.

    foveal train recipes/clip/1_contrast.py --set data=FOLDER files=FOLDER
    foveal train recipes/clip/1_contrast.py --set size=tiny

Values: Radford et al. 2021, "Learning transferable visual models". Section 2.3: from scratch; a random square of the
resized picture is the only augmentation; the temperature is learned. Section 2.5: 32 epochs of 400 million pairs in
batches of 32,768; the temperature begins at 0.07 and its inverse stays below 100. Tables 18 and 20: 5e-4 (ViT-B/32),
cosine to 0 after 2000 steps, AdamW (0.9, 0.98, 1e-6), weight decay 0.2; they are cited from memory and were not
compared with the paper again. No clipping of gradients is published. `files` is a released folder, for the vocabulary.
"""

import math
from pathlib import Path

from foveal.data.augment import Augmentation
from foveal.families.clip import FAMILY
from foveal.processing.pictures import PictureProcessor
from foveal.train.pairs import Contrast
from foveal.train.run import Fresh, Run
from foveal.train.shipped import Size, in_size, sets
from foveal.train.stage import Stage
from foveal.train.tiny import tiny

TRAINABLE = (("*", 5e-4),)


def run(
    size: Size = "full",
    released: str = "base-patch32",
    files: Path = Path(),
    data: str | None = None,
    folder: Path = Path("build/clip"),
) -> Run:
    stage = Stage(
        name="contrast",
        data=sets(size, data, {"caption": 1.0}, {"caption": "caption"}),
        task=Contrast(kind="softmax", chunk=4096),
        augment=Augmentation(square=True),
        steps=390_625,
        batch=32_768,
        trainable=TRAINABLE,
        warmup=2000,
        floor=0.0,
        weight_decay=0.2,
        betas=(0.9, 0.98),
        eps=1e-6,
        clip=math.inf,
        dtype="bf16",
        checkpointing=True,
        save_every=1000,
    )
    changes = {"batch": 32, "steps": 300, "warmup": 30}
    model = tiny("clip") if size == "tiny" else at_random(released, files)
    return Run(model=model, stages=(in_size(size, stage, **changes),), folder=folder)


def at_random(released: str, files: Path) -> Fresh:
    """A model of a released size with random weights and the vocabulary of the folder `files`."""
    config = FAMILY.size(released)
    return Fresh(family=FAMILY, config=config, processor=PictureProcessor.from_folder(files, FAMILY.processing(config)))
