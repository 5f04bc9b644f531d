"""The toy proof, smaller: three stages in sequence until boxes are found."""

from pathlib import Path

import pytest

from foveal.train.checkpoint import read_rows
from foveal.train.recipe import load_recipe
from foveal.train.trainer import train

RECIPE = Path(__file__).parents[2] / "recipes" / "toy" / "grounding.py"


@pytest.mark.slow
def test_three_stages_learn_four_scenes_by_heart(tmp_path: Path) -> None:
    settings = ("scenes=4", "steps=70", "chat.steps=30", "chat.warmup=5", f"folder={tmp_path}")
    run = load_recipe(RECIPE, settings)
    assert [stage.name for stage in run.stages] == ["align", "multitask", "chat"]
    train(run)
    rows = read_rows(tmp_path / "chat" / "log.jsonl")
    assert [row["loss"] for row in rows if "loss" in row][-1] < 0.05
    (figures,) = (row["evaluation"] for row in rows if "evaluation" in row)
    assert figures == {"found": 1.0}
