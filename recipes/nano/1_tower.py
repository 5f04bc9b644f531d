"""Stage 1: the tower and the merger learn to say, for every visual token, what is there and where.

Command:  python recipes/nano/1_tower.py [steps]
"""

import logging
import sys

import numpy as np
import torch
from common import BUILD, WIDTH, SceneMaker, SceneSettings, compiled, feed, grid_of, patches_of, sprites, start_weights, tower

from foveal.data.dense import class_names, dense_targets
from foveal.train.checkpoint import append_json
from foveal.train.dense import DenseHeads
from foveal.train.loop import run
from foveal.train.stage import Stage

SETTINGS = SceneSettings(kinds=(0.15, 0.6, 0.25), objects=(2, 5), turn_deg=20, stretch=1.25, tint=0.22)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    torch.set_num_threads(1)
    pictures = sprites()
    names = class_names(pictures.names)
    index = {name: i for i, name in enumerate(names)}
    stage = Stage(
        name="tower",
        steps=steps,
        batch=32,
        trainable=(("vision.*", 1.5e-3), ("adapter.*", 1.5e-3), ("heads.*", 1.5e-3)),
        warmup=300,
    )
    network = tower()
    network["heads"] = DenseHeads(WIDTH, len(names))
    start_weights(network, seed=1)
    network.to(torch.bfloat16)
    compiled(network)
    maker = SceneMaker(pictures, "train", SETTINGS, seed=1)
    exam_maker = SceneMaker(pictures, "test", SceneSettings(), seed=99)

    def make(step: int):  # type: ignore[no-untyped-def]
        scenes = [maker.make(step * stage.batch + i, grid=grid_of(step)) for i in range(stage.batch)]
        patches, grids = patches_of(scenes)
        return torch.from_numpy(patches).bfloat16(), grids, dense_targets(scenes, index)

    def loss(batch):  # type: ignore[no-untyped-def]
        patches, grids, target = batch
        return network["heads"].loss(network["adapter"](network["vision"](patches, grids)), target)

    exam = [exam_maker.make(i, grid=grid_of(i // 32)) for i in range(320)]

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
        row = {"held_out": "tower", "step": step} | {k: round(float(np.mean(v)), 4) for k, v in sums.items()}
        append_json(BUILD / "tower" / "log.jsonl", row)
        logging.info("%s", row)

    run(stage, network, loss, lambda first: feed(make, first, steps), BUILD / "tower", on_step=grade)


if __name__ == "__main__":
    main()
