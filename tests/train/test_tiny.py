"""Tiny models of every trained family: they train, are saved, and are opened again."""

import math
from pathlib import Path
from typing import Any

import pytest

import foveal
from foveal.core.errors import ConfigError
from foveal.data.mixture import Mixture
from foveal.data.toy import ToySet
from foveal.engine.model import load
from foveal.train.checkpoint import read_rows
from foveal.train.pairs import Contrast
from foveal.train.run import Run
from foveal.train.stage import Pixels, Stage
from foveal.train.tiny import tiny
from foveal.train.trainer import train

TALKING = ("qwen_vl", "qwen2_vl", "qwen2_5_vl", "deepseek_vl", "deepseek_vl2")
FIXED = (("adapter.positions", False), ("*", 1e-3))


def trained(folder: Path, name: str, toys: str, steps: int = 2, **changes: Any) -> list[float]:
    model = tiny(name)
    rules = FIXED if name == "qwen_vl" else (("vision.unused.*", False), *FIXED[1:])
    values: dict[str, Any] = {
        "name": "one", "steps": steps, "batch": 4, "data": Mixture([(ToySet(toys, 16), 1.0)]), "warmup": 1,
        "trainable": rules if name in ("qwen_vl", "deepseek_vl") else FIXED[1:], "log_every": 1, "dtype": "fp32",
    }  # fmt: skip
    stage = Stage(**{**values, **changes})
    train(Run(model=model, stages=(stage,), folder=folder, workers=0, device="cpu"))
    return [float(str(row["loss"])) for row in read_rows(folder / "one" / "log.jsonl")]


@pytest.mark.parametrize("name", TALKING)
def test_a_tiny_model_trains_and_opens_again(tmp_path: Path, name: str) -> None:
    small = {"pixels": Pixels(side_px=224)} if name == "qwen_vl" else {}
    losses = trained(tmp_path, name, "caption" if name == "deepseek_vl" else "find", **small)
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    model = load(tmp_path / "one" / "model", device="cpu")
    sample = ToySet("find", 16)[3]
    answer = model.chat(list(sample.messages[:1]), max_tokens=4, temperature=0)
    assert len(answer.ids) >= 1


@pytest.mark.parametrize(("name", "kind", "steps"), [("clip", "softmax", 10), ("siglip", "sigmoid", 10)])
def test_two_towers_train_and_open_again(tmp_path: Path, name: str, kind: Any, steps: int) -> None:
    task = Contrast(kind=kind)
    losses = trained(tmp_path, name, "caption", steps, task=task, batch=8, trainable=(("*", 3e-3),))
    assert losses[-1] < losses[0]
    model = foveal.load(tmp_path / "one" / "model", device="cpu")
    picture = ToySet("caption", 16).toy(0).image
    assert model.similarity(picture, ["a red circle", "a blue square"]).shape == (1, 2)


def test_sizes_of_two_towers_can_be_changed() -> None:
    found = tiny("siglip", vision={"width": 48, "heads": 3, "side": 5}, side_px=40, embed=48, depth=1)
    assert (found.config.vision.width, found.config.vision.side, found.config.side_px) == (48, 5, 40)
    assert (found.config.text.depth, found.config.text.embed) == (1, 48)
    assert found.processor.pictures(ToySet("caption", 16).toy(0).image).grids.tolist() == [[1, 5, 5]]
    with pytest.raises(ConfigError, match="only the sizes of families with two towers"):
        tiny("qwen2_vl", side_px=56)
