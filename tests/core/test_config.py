"""Configurations lose nothing silently."""

from dataclasses import dataclass

import pytest

from foveal.core.config import from_mapping, read_json, text_of
from foveal.core.errors import ConfigError
from foveal.core.media import MediaBudget


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class Outer:
    width: int
    rate: float = 0.1
    section: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    name: str | None = None
    other: Inner | None = None


def test_reads_nested_values():
    made = from_mapping(Outer, {"width": 3, "rate": 1, "section": [4, 5, 6], "inner": {"depth": 7}, "name": None})
    assert made == Outer(width=3, rate=1.0, section=(4, 5, 6), inner=Inner(depth=7))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 3}, r"unknown key 'widht'.*did you mean 'width'"),
        ({}, r"'width' is missing"),
        ({"width": "3"}, r"width: got '3' \(str\), expected int"),
        ({"width": True}, r"expected int"),
        ({"width": 1, "section": 4}, r"expected a list"),
        ({"width": 1, "inner": {"deep": 1}}, r"inner: unknown key 'deep'"),
        ({"width": 1, "other": {"deep": 1}}, r"other: unknown key 'deep'; did you mean 'depth'"),
        ({"width": 1, "other": 4}, r"other: got 4, expected"),
        ({"width": 1, "name": 4}, r"name: got 4"),
    ],
)
def test_says_what_is_wrong(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "JSON list, expected an object"),
        ("{", "not a readable JSON"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not a readable JSON"),
        (None, "exist"),
    ],
)
def test_read_json_names_the_file(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_json(path)
    assert "config.json" in str(caught.value)


def test_budget_bounds_are_above_zero():
    with pytest.raises(ConfigError, match="frames is 0"):
        MediaBudget(frames=0)


def test_text_of_names_the_file(tmp_path):
    path = tmp_path / "merges.txt"
    with pytest.raises(ConfigError, match=r"merges\.txt cannot be read"):
        text_of(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"merges\.txt cannot be read"):
        text_of(path)
    path.write_text("a b\n")
    assert text_of(path) == "a b\n"
