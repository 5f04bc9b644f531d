"""Stages 1 and 2: the tower and the merger learn to say, for every visual token, what is there and where.

Command:  python recipes/nano/1_tower.py start      # one thing in a small picture, bent: first features
          python recipes/nano/1_tower.py pictures   # one thing in a small picture: names, cheaply
          python recipes/nano/1_tower.py bent       # the same, bent: names that hold for other drawings
          python recipes/nano/1_tower.py tower      # scenes: names and boxes of several things
Hardware: two cores of an Intel Xeon with AMX; training on one, scenes made on the other.
Time:     3, 7, 10 and 10 minutes.
Result:   on held-out pictures 71 % of grid cells named, box edges 3.8 % of the side off (`LOG.md` has every stage).
"""

import logging
import sys
from dataclasses import replace

import numpy as np
import torch
from common import (
    BUILD,
    WIDTH,
    compiled,
    feed,
    grid_of,
    patches_of,
    sprites,
    start_weights,
    take_over,
    tower,
)

from foveal.data.dense import class_names, dense_targets
from foveal.data.scenes import SceneMaker, SceneSettings
from foveal.train.checkpoint import append_json
from foveal.train.dense import DenseHeads
from foveal.train.loop import run
from foveal.train.stage import Stage

SCENES = SceneSettings(kinds=(0.25, 0.55, 0.2), objects=(2, 5), turn_deg=20, stretch=1.25, tint=0.22)
BENT = {"turn_deg": 22.0, "stretch": 1.4, "tint": 0.25, "warp": 0.09, "erase": 0.12, "wild": 0.35}
PICTURES = replace(SCENES, kinds=(1.0, 0.0, 0.0), side=(0.48, 0.6))
RATES = (("vision.*", 1.5e-3), ("adapter.*", 1.5e-3), ("heads.*", 1.5e-3))
STAGES = {
    "start": (
        Stage(name="start", steps=500, batch=128, trainable=RATES, warmup=200, floor=0.9, weight_decay=0.1),
        replace(PICTURES, **BENT), (3, 3), None,
    ),
    "pictures": (
        Stage(name="pictures", steps=1200, batch=128, trainable=RATES, warmup=50, floor=0.6, weight_decay=0.05),
        PICTURES, (3, 3), "start",
    ),
    "bent": (
        Stage(name="bent", steps=1900, batch=128, trainable=RATES, warmup=50, floor=0.3, weight_decay=0.1),
        replace(PICTURES, **BENT), (3, 3), "pictures",
    ),
    "tower": (
        Stage(name="tower", steps=1800, batch=32, trainable=RATES, warmup=100, floor=0.2, weight_decay=0.1),
        replace(SCENES, **BENT), None, "bent",
    ),
}  # fmt: skip
"""Stage, look of its scenes, its grid if it has only one, and the stage it goes on from."""


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stage, settings, only, before = STAGES[sys.argv[1]]
    if len(sys.argv) > 2:
        stage = replace(stage, steps=int(sys.argv[2]))
    steps = stage.steps
    torch.set_num_threads(1)
    pictures = sprites()
    names = class_names(pictures.names)
    index = {name: i for i, name in enumerate(names)}
    network = tower()
    network["heads"] = DenseHeads(WIDTH, len(names))
    start_weights(network, seed=1)
    if before is not None:
        take_over(network, BUILD / before / "last.safetensors")
    network.to(torch.bfloat16)
    compiled(network)
    maker = SceneMaker(pictures, "train", settings, seed=10 + list(STAGES).index(stage.name))
    exam_maker = SceneMaker(pictures, "test", settings if only else SceneSettings(), seed=99)

    def make(step: int):  # type: ignore[no-untyped-def]
        scenes = [maker.make(step * stage.batch + i, grid=only or grid_of(step)) for i in range(stage.batch)]
        patches, grids = patches_of(scenes)
        return torch.from_numpy(patches).bfloat16(), grids, dense_targets(scenes, index)

    def loss(batch):  # type: ignore[no-untyped-def]
        patches, grids, target = batch
        return network["heads"].loss(network["adapter"](network["vision"](patches, grids)), target)

    exam = [exam_maker.make(i, grid=only or grid_of(i // 32)) for i in range(320)]

    def grade(step: int) -> None:
        if step % 500 and step != steps:
            return
        sums: dict[str, list[float]] = {}
        with torch.no_grad():
            for at in range(0, len(exam), 32):
                patches, grids = patches_of(exam[at : at + 32])
                tokens = network["adapter"](network["vision"](torch.from_numpy(patches).bfloat16(), grids))
                _, figures = network["heads"].loss(tokens, dense_targets(exam[at : at + 32], index))
                for key, value in figures.items():
                    sums.setdefault(key, []).append(value)
        row = {"held_out": stage.name, "step": step} | {k: round(float(np.mean(v)), 4) for k, v in sums.items()}
        append_json(BUILD / stage.name / "log.jsonl", row)
        logging.info("%s", row)

    run(stage, network, loss, lambda first: feed(make, first, steps), BUILD / stage.name, on_step=grade)


if __name__ == "__main__":
    main()
