"""Tiny CLIP and SigLIP on one and on two processes, 50 steps each: a script that takes all runs, one after another.

python tests/helpers/pair_runs.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

from foveal.data.mixture import Mixture
from foveal.data.toy import ToySet
from foveal.train.losses.sigmoid import EXCHANGES
from foveal.train.pairs import Contrast
from foveal.train.run import Run
from foveal.train.stage import Stage
from foveal.train.tiny import tiny
from tests.helpers.parallel_runs import together

STEPS = 50


def runs(folder: Path) -> list[tuple[str, int, Run]]:
    """Name, processes, run."""

    def made(name: str, family: str, processes: int, kind: Any, **task: Any) -> tuple[str, int, Run]:
        stage = Stage(
            name="toy",
            data=Mixture([(ToySet("caption", 64), 1.0)]),
            task=Contrast(kind="softmax" if family == "clip" else "sigmoid", **task),
            steps=STEPS,
            batch=8,
            trainable=(("*", 1e-3),),
            warmup=5,
            dtype="fp32",
            save_every=STEPS,
            log_every=1,
        )
        run = Run(
            model=tiny(family), stages=(stage,), folder=folder / name, workers=0, device="cpu", parallel=kind,
            evaluate=weights,
        )  # fmt: skip
        return name, processes, run

    return [
        made("clip-alone", "clip", 1, None),
        made("clip-ddp", "clip", 2, "ddp"),
        made("clip-fsdp", "clip", 2, "fsdp", chunk=5),
        made("siglip-alone", "siglip", 1, None),
        *(made(f"siglip-{how}", "siglip", 2, "ddp", exchange=how) for how in EXCHANGES),
        made("siglip-fsdp", "siglip", 2, "fsdp"),
    ]


def weights(loaded: Any, step: int) -> dict[str, float]:
    """The scale and the offset at the end, and a figure that needs every weight."""
    named = {name: p.detach().double() for name, p in loaded.network.named_parameters()}
    found = {name: float(p.sum()) for name, p in named.items() if name.startswith("logit_")}
    return {**found, "sum": sum(float(p.abs().sum()) for p in named.values())}


if __name__ == "__main__":
    together(Path(sys.argv[1]), runs(Path(sys.argv[1])))
