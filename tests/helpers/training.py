"""A run that takes a second: a random Qwen2-VL of the tiniest size, toy pictures, a mixture and packs."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from foveal.data.mixture import Mixture
from foveal.data.toy import ToySet
from foveal.families.describe import describe, folder_of
from foveal.families.qwen2_vl import FAMILY
from foveal.processing.processor import Processor
from foveal.train.run import Fresh, Run
from foveal.train.stage import Pixels, Stage

ALL = (("*", 2e-3),)


@cache
def processor() -> Processor:
    """The shipped model's vocabulary."""
    found = describe(folder_of(None)).processor
    if not isinstance(found, Processor):
        raise TypeError("the shipped model talks")
    return found


def fresh(seed: int = 0) -> Fresh:
    tiny = FAMILY.size("tiny")
    config = replace(tiny, language=replace(tiny.language, vocab=1600, depth=2))
    return Fresh(family=FAMILY, config=config, processor=processor(), seed=seed)


def mixture() -> Mixture:
    return Mixture([(ToySet("find", 12), 2.0), (ToySet("vqa", 8), 1.0), (ToySet("text", 5), 1.0)], seed=3)


def stage(**changes: Any) -> Stage:
    values: dict[str, Any] = {
        "name": "toy", "steps": 6, "batch": 6, "trainable": ALL, "data": mixture(), "pixels": Pixels(min_px=56 * 56),
        "max_tokens": 160, "warmup": 2, "save_every": 3, "log_every": 1, "dtype": "fp32",
    }  # fmt: skip
    return Stage(**{**values, **changes})


def run(folder: Path, *stages: Stage, **changes: Any) -> Run:
    values: dict[str, Any] = {"model": fresh(), "stages": stages or (stage(),), "folder": folder, "workers": 0}
    return Run(**{**values, "device": "cpu", **changes})
