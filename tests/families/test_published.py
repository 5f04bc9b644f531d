"""Reading published configurations: no value of a wrong kind gets through, and none ends in a traceback."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveal.core.errors import ConfigError
from foveal.families.describe import family_of
from foveal.families.published import Reader

PUBLISHED = Path(__file__).parents[1] / "data_files/published"
WRONG = (None, "abc", -1, 0, 1.5, [], {}, True, [1, "x"], {"a": 1})


def test_numbers_and_words():
    part = Reader({"eps": 1e-6, "whole": 2, "act": "gelu", "none": None, "yes": True, "zero": 0.0}, "here")
    assert part.number("eps", 1.0) == 1e-6
    assert part.number("whole", 1.0) == 2.0
    assert part.number("absent", 3.0) == 3.0
    assert part.number("zero", 1.0, zero=True) == 0.0
    assert part.word("act", "silu") == "gelu"
    assert part.word("absent", "silu") == "silu"
    assert part.flag("yes", False) and part.flag("absent", True)
    assert part.integer("whole") == 2 and Reader({"id": 0}, "here").integer("id", zero=True) == 0
    for key in ("act", "none", "yes", "zero"):
        with pytest.raises(ConfigError, match=rf"here: {key} is .*a number above 0 is expected"):
            part.number(key, 1.0)
    for value in (math.nan, math.inf, -1.0):
        with pytest.raises(ConfigError, match="a number 0 or more is expected"):
            Reader({"x": value}, "here").number("x", 1.0, zero=True)
    for key in ("eps", "none", "act"):
        with pytest.raises(ConfigError, match=rf"here: {key} is .*true or false is expected"):
            part.flag(key, True)
    for key in ("eps", "none", "yes"):
        with pytest.raises(ConfigError, match=rf"here: {key} is .*a text is expected"):
            part.word(key, "silu")


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a configuration, at any depth, but for the names of classes."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict) and key not in ("id2label", "label2id"):
            yield from places(inner, (*path, key))


@pytest.mark.parametrize("name", sorted(p.parent.name for p in PUBLISHED.glob("*/config.json")))
def test_wrong_values_are_named_errors(name: str):
    """Every key of every released configuration, left out or with values of other kinds: read, or a ConfigError."""
    released = json.loads((PUBLISHED / name / "config.json").read_text(encoding="utf-8"))
    refused = 0
    for path in places(released):
        for value in ("left out", *WRONG):
            changed = copy.deepcopy(released)
            part = changed
            for key in path[:-1]:
                part = part[key]
            if value == "left out":
                del part[path[-1]]
            else:
                part[path[-1]] = value
            try:
                family_of(changed).from_published(changed)
            except ConfigError:
                refused += 1
    assert refused > 20
