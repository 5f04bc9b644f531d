"""A classifier: what it takes, what it says, what it refuses."""

import io

import numpy as np
import pytest

import foveal
from foveal.cli.main import main
from foveal.core.errors import BudgetError, ConfigError, InputError
from foveal.engine import model as engine
from foveal.families.plan import Planner
from tests.helpers import vit
from tests.helpers.pictures import odd_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vit.write(vit.oracle(seed=1), tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def model(folder):
    return foveal.load(folder, device="cpu")


def test_one_picture_in_every_form(model, tmp_path):
    picture = odd_pictures()[9]
    expected = model.classify(picture)
    assert len(expected) == 5
    assert [g.probability for g in expected] == sorted((g.probability for g in expected), reverse=True)
    assert all(g.label == vit.LABELS[g.index] for g in expected)
    picture.save(tmp_path / "a.png")
    stream = io.BytesIO()
    picture.save(stream, "png")
    for same in (np.asarray(picture), tmp_path / "a.png", str(tmp_path / "a.png"), stream.getvalue()):
        assert model.classify(same) == expected
    assert model.classify([picture]) == [expected]


def test_batches_give_the_same(model):
    pictures = odd_pictures()
    whole = model.classify(pictures, top=2)
    for one, two in zip(whole, model.classify(pictures, top=2, batch=3), strict=True):
        assert [g.label for g in one] == [g.label for g in two]
        assert [g.probability for g in one] == pytest.approx([g.probability for g in two], abs=1e-6)


def test_all_labels_sum_to_one(model):
    guesses = model.classify(odd_pictures()[3], top=len(vit.LABELS))
    assert sum(g.probability for g in guesses) == pytest.approx(1)


def test_what_is_refused(model):
    picture = odd_pictures()[0]
    for top in (0, 8):
        with pytest.raises(InputError, match=f"top is {top}; expected 1 to 7"):
            model.classify(picture, top=top)
    with pytest.raises(InputError, match="batch is 0"):
        model.classify(picture, batch=0)
    with pytest.raises(InputError, match="there is no picture"):
        model.classify([])
    with pytest.raises(InputError, match=r"no result named 'layers\.0'"):
        model.forward(model.process(picture), keep=["layers.0"])


def test_a_budget_holds(folder):
    small = foveal.load(folder, device="cpu", budget=foveal.MediaBudget(image_px=100))
    with pytest.raises(BudgetError, match="the budget is 100"):
        small.classify(odd_pictures()[9])


def test_a_tower_without_a_head_has_no_labels(tmp_path):
    model = foveal.load(vit.write(vit.oracle(bare=True), tmp_path / "bare"), device="cpu")
    with pytest.raises(InputError, match="tower without a head"):
        model.classify(odd_pictures()[0])
    assert model.forward(model.process(odd_pictures()[:2]))[0].shape == (2, 36)


def test_it_answers_no_questions(folder, capsys):
    with pytest.raises(ConfigError, match="holds a vit model, which answers no questions"):
        engine.load(folder)
    assert main(["ask", "--model", str(folder), "What is this?"]) == 2
    assert "holds a vit model, which answers no questions" in capsys.readouterr().err
    with pytest.raises(InputError, match="answers no questions to be planned"):
        Planner(folder)


def test_inspect(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    page = capsys.readouterr().out
    assert "(vit)" in page
    assert "labels = 7: cat, dog" in page
    assert "resample = 2" in page
