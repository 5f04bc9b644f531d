"""Zero-shot figures: what is counted, and the interval over labels."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from foveal.core.errors import InputError
from foveal.eval.zero_shot import ZeroShot, zero_shot


class Answers:
    """Says of picture number n what `said[n]` is."""

    def __init__(self, said: Sequence[str]) -> None:
        self.said = said

    def classify(self, images: Sequence[int], labels: Sequence[str], **options: Any) -> list[Any]:
        self.options = {"labels": list(labels), **options}
        return [SimpleNamespace(label=self.said[image]) for image in images]


def test_right_answers_are_counted_by_label() -> None:
    model: Any = Answers(["cat", "cat", "dog", "dog", "dog"])
    truths = ["cat", "dog", "dog", "dog", "cat"]
    found = zero_shot(model, range(5), truths, ["cat", "dog", "fox", "owl"], templates=["a {}"], batch=2)
    assert model.options == {"labels": ["cat", "dog", "fox", "owl"], "templates": ["a {}"], "batch": 2}
    assert found.right == {"cat": 1, "dog": 2} and found.count == {"cat": 2, "dog": 3}
    assert found.share == 0.6 and found.chance == 0.25
    figures = found.figures()
    assert (figures["zero_shot"], figures["pictures"], figures["labels"]) == (0.6, 5, 4)
    assert figures["low"] <= 0.6 <= figures["high"]


def test_the_interval_is_that_between_labels() -> None:
    """With all pictures of a label right or wrong together, as many labels as pictures would say too much."""
    together = ZeroShot(right={"a": 10, "b": 0, "c": 10, "d": 10}, count=dict.fromkeys("abcd", 10), labels=4)
    # Mean of 1, 0, 1, 1: its standard error is sqrt(0.25 / 4).
    assert together.bounds == pytest.approx((0.75 - 1.96 * 0.25, 1.0))
    alike = ZeroShot(right=dict.fromkeys("abcd", 7), count=dict.fromkeys("abcd", 10), labels=4)
    assert alike.bounds == pytest.approx((0.7, 0.7))
    assert ZeroShot(right={"a": 1}, count={"a": 3}, labels=2).bounds == (0.0, 1.0)


def test_pictures_need_truths_among_the_labels() -> None:
    model: Any = Answers(["cat"])
    with pytest.raises(InputError, match="1 pictures but 2 truths"):
        zero_shot(model, [0], ["cat", "dog"], ["cat", "dog"])
    with pytest.raises(InputError, match="'fox' is not among the labels"):
        zero_shot(model, [0], ["fox"], ["cat", "dog"])
    with pytest.raises(InputError, match="no picture"):
        zero_shot(model, [], [], ["cat", "dog"])
