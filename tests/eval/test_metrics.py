"""Reading answers, matching boxes, intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.box import Box, Space
from foveal.eval.metrics import Mentions, f1, first_of, interval, matched, number


def box(*corners: float) -> Box:
    return Box(label="", corners=corners, space=Space.ORIGINAL_PX)  # type: ignore[arg-type]


def test_interval_is_wilsons() -> None:
    low, high = interval(85, 100)
    assert (low, high) == (pytest.approx(0.7672, abs=1e-3), pytest.approx(0.9069, abs=1e-3))
    assert interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.floats(0, 1))
def test_interval_holds_the_share(count: int, share: float) -> None:
    low, high = interval(share * count, count)
    assert 0.0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1.0


def test_names_are_found_longest_first() -> None:
    mentions = Mentions({"fire truck": "fire truck", "fire trucks": "fire truck", "fire": "fire", "truck": "truck"})
    assert mentions("Two fire trucks and a truck by the Fire.") == ["fire truck", "truck", "fire"]
    assert mentions("campfire trucking") == []
    assert Mentions({"glasses": "glasses", "sunglasses": "sunglasses"})("There are sunglasses.") == ["sunglasses"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("There are 3 dogs.", 3), ("There is no dog.", 0), ("Four!", 4), ("some dogs", None), ("A note", None)],
)
def test_numbers_are_read(text: str, value: int | None) -> None:
    assert number(text) == value


def test_the_first_word_counts() -> None:
    assert first_of("Yes, there is no doubt.", ("yes", "no")) == "yes"
    assert first_of("Maybe.", ("yes", "no")) is None
    assert first_of("The bright circle is right.", ("left", "right")) == "right"


def test_boxes_are_matched_one_to_one() -> None:
    a, b = box(0, 0, 10, 10), box(20, 0, 30, 10)
    assert matched([a, b], [b, a], 0.5) == 2
    assert matched([a, a], [a, b], 0.5) == 1
    assert matched([box(0, 0, 10, 4.9)], [a], 0.5) == 0
    assert matched([box(0, 0, 10, 5.0)], [a], 0.5) == 1
    assert matched([], [a], 0.5) == 0


def test_f1_counts_repeats() -> None:
    assert f1(["dog", "dog"], ["dog", "dog"]) == 1.0
    assert f1(["dog"], ["dog", "dog"]) == pytest.approx(2 / 3)
    assert f1([], []) == 1.0 and f1([], ["dog"]) == 0.0
