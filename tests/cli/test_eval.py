"""`foveal eval` on stored scenes, with a model whose answers are known."""

import json

import pytest
from PIL import Image

from foveal.cli.main import main
from foveal.eval.tasks.scenes import Asked, Pictured, SceneTask


@pytest.fixture
def scenes(tmp_path):
    """Three pictures, one question each; "yes" is right twice."""
    pictured = [
        Pictured(
            image=Image.new("RGB", (60, 60), colour),
            size=(60, 60),
            questions=(Asked(kind="present", text="Is there a dog?", truth=truth, subject="dog"),),
        )
        for colour, truth in (("red", "yes"), ("green", "no"), ("blue", "yes"))
    ]
    SceneTask(pictured).store(tmp_path / "scenes")
    return str(tmp_path / "scenes")


def test_figures_of_known_answers(folder, scenes, capsys, talking):
    talking(["Yes."], again=True)
    assert main(["eval", scenes, "-m", str(folder), "--json", "--batch", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"]["present"] == {"questions": 3, "right": 2.0, "share": 0.6667}
    assert told["blind"]["present"]["share"] == 0.6667
    assert told["majority"]["present"]["share"] == 0.6667
    assert [m["truth"] for m in told["misses"]] == ["no"]


def test_a_table_for_people(folder, scenes, capsys, talking):
    talking(["Yes."], again=True)
    assert main(["eval", scenes, "-m", str(folder), "--no-blind", "--limit", "2", "--batch", "1"]) == 0
    assert "| present | 2 | 50.0% |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval"], "pass a folder of stored scenes or --sprites FILE"),
        (["eval", "SCENES", "--sprites", "x.npz"], "not both"),
        (["eval", "SCENES", "--unseen-wordings"], "belongs to --sprites"),
        (["eval", "nowhere"], "no stored scene task"),
        (["eval", "--sprites", "nowhere.npz"], "does not exist"),
        (["eval", "SCENES", "--limit", "0"], "both must be at least 1"),
    ],
)
def test_what_is_wrong_is_said(folder, scenes, capsys, words, message):
    words = [scenes if w == "SCENES" else w for w in words]
    assert main([*words, "-m", str(folder)]) == 2
    assert message in capsys.readouterr().err
