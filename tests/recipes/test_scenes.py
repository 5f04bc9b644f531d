"""The recipe that teaches names on scenes: its beginning, its grading, its export."""

import math
from pathlib import Path

import pytest
import torch

import foveal
from foveal.data.captions import CaptionedScenes
from foveal.data.sprites import SpriteSet
from foveal.eval.zero_shot import zero_shot
from foveal.nn.embed import sincos_table
from foveal.train.checkpoint import read_rows
from foveal.train.recipe import load_recipe
from foveal.train.trainer import train

ROOT = Path(__file__).parents[2]
SPRITES = ROOT / "tests" / "data_files" / "sprites.npz"
"""Four names, with two pictures each to learn from and a held-out one."""


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_run_is_graded_on_held_out_pictures(tmp_path: Path, family: str) -> None:
    settings = (f"family={family}", f"sprites={SPRITES}", "every=1", "steps=2", "workers=0")
    run = load_recipe(ROOT / "recipes" / "toy" / "scenes.py", (*settings, f"folder={tmp_path}"))
    assert run.stages[0].batch == 4 and run.stages[0].data.split == "train"
    first = run.load().network
    assert torch.equal(first.vision.tower.positions[-49:], sincos_table(7, 96))
    if family == "siglip":
        assert first.logit_bias.item() == pytest.approx(-math.log(4))

    train(run)
    figures = read_rows(tmp_path / family / "contrast" / "log.jsonl")[-1]["evaluation"]
    assert isinstance(figures, dict)
    assert (figures["pictures"], figures["labels"], figures["chance"]) == (80, 4, 0.25)

    # The export, opened as anyone opens it.
    held_out = CaptionedScenes(SpriteSet.load(SPRITES), "test", cells=2)
    model = foveal.load(tmp_path / family / "contrast" / "model", device="cpu")
    images, truths = [held_out.picture(n) for n in range(80)], [held_out.name(n) for n in range(80)]
    assert zero_shot(model, images, truths, held_out.names, batch=64).share == figures["zero_shot"]
