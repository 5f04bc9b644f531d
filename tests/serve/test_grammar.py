"""Whatever a model wants to say: what it can say has the form."""

import json
import random
import re
from functools import cache

import numpy as np
import pytest

from foveal.core.box import ImageView, Space
from foveal.core.errors import FovealError, InputError
from foveal.families.describe import describe, folder_of
from foveal.processing.det_boxes import DetBoxes
from foveal.processing.grounding import TaggedBoxes, parse
from foveal.processing.json_boxes import JsonBoxes
from foveal.processing.no_boxes import NoBoxes
from foveal.serve import tools
from foveal.serve.grammar import (
    MOST_CHARACTERS,
    Vocabulary,
    box_grammar,
    choice_grammar,
    json_grammar,
    regex_grammar,
    tool_grammar,
)

CLOSED = {"type": "object", "additionalProperties": False}
SCHEMAS = [
    {
        **CLOSED,
        "properties": {
            "a": {"type": "string", "maxLength": 9},
            "b": {"type": "integer", "minimum": -5, "maximum": 99},
        },
        "required": ["a", "b"],
    },
    {"type": "array", "items": {"enum": ["x", 1, None, "<|im_end|>"]}, "minItems": 1, "maxItems": 4},
    {
        "anyOf": [
            {"type": "boolean"},
            {
                **CLOSED,
                "properties": {"z": {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 2}},
                "required": ["z"],
            },
        ]
    },
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
]


@cache
def processor():
    return describe(folder_of(None)).processor


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(processor().tokenizer, [processor().end_of_turn])


def babble(grammar: str, seed: int, most: int = 400) -> list[int]:
    """What a model says that wants nothing in particular."""
    vocabulary().check(grammar)
    constraint, chance, ids = vocabulary().constraint(grammar), random.Random(seed), []
    while not constraint.done:
        allowed = np.flatnonzero(constraint.mask())
        assert len(allowed)
        ids.append(int(chance.choice(allowed)))
        constraint.accept(ids[-1])
        assert len(ids) < most
    return [i for i in ids if i != processor().end_of_turn]


def text(ids: list[int]) -> str:
    return processor().tokenizer.decode(ids)


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_json_follows_its_schema_and_holds_no_special_token(number):
    jsonschema = pytest.importorskip("jsonschema_rs")
    for seed in range(25):
        ids = babble(json_grammar(SCHEMAS[number]), seed)
        assert jsonschema.is_valid(SCHEMAS[number], json.loads(text(ids))), text(ids)
        assert not processor().special_ids & set(ids)


def test_texts_match_their_pattern_or_are_one_of_the_choices():
    choices = ["yes", "no", 'quo"te\\', "<|im_end|>", "é😀\n", "猫"]
    for seed in range(40):
        assert re.fullmatch("[0-9]{3}-[a-z]{2,4}", text(babble(regex_grammar("[0-9]{3}-[a-z]{2,4}"), seed)))
        ids = babble(choice_grammar(choices), seed)
        assert text(ids) in choices
        assert not processor().special_ids & set(ids)


@pytest.mark.parametrize("labels", [None, ["cat", 'a "dog"', "<|box_end|>"]])
def test_boxes_are_read_back_without_a_flag(labels):
    style, view = processor().processing.boxes, ImageView(original=(640, 480), processed=(644, 476))
    assert isinstance(style, TaggedBoxes)
    for seed in range(40):
        ids = babble(box_grammar(style, labels, 3, (1000, 1000)), seed)
        found = parse(processor().tokenizer.decode_segments(ids), style, view, 0)
        assert 1 <= len(found.boxes) <= 3
        assert not found.broken
        for box in found.boxes:
            assert set(box.flags) <= {"swapped", "empty"}  # the order of corners is the model's own affair
            assert labels is None or box.label in labels


@pytest.mark.parametrize("space", [Space.PROCESSED_PX, Space.RELATIVE_1000])
def test_json_boxes_stay_inside_the_picture(space):
    style, view = JsonBoxes(space=space), ImageView(original=(640, 480), processed=(644, 476))
    extent = tuple(map(int, view.extent(space)))
    for seed in range(20):
        ids = babble(box_grammar(style, ["cat"], 3, extent), seed)
        found = parse(processor().tokenizer.decode_segments(ids), style, view, 0)
        assert found.boxes
        assert not found.broken
        assert all("clipped" not in box.flags for box in found.boxes)


def test_other_styles():
    grammar = box_grammar(DetBoxes(), None, 1, (999, 999))
    assert "<|det|>" in grammar
    with pytest.raises(InputError, match="no form of boxes"):
        box_grammar(NoBoxes(), None, 1, (999, 999))


def test_calls_of_tools_can_be_read():
    functions = [{"name": "paint", "parameters": SCHEMAS[0]}, {"name": "look"}]
    names = frozenset(f["name"] for f in functions)
    for seed in range(25):
        ids = babble(tool_grammar([functions[0]], frozenset(), several=False), seed)
        words, (call,) = tools.split(text(ids), names)
        assert words == ""
        assert set(json.loads(call.arguments)) == {"a", "b"}


@pytest.mark.parametrize(
    "grammar",
    [
        lambda: json_grammar({"type": "thing"}),
        lambda: json_grammar({"$ref": "http://127.0.0.1:9/schema.json"}),
        lambda: json_grammar({"$ref": "file:///etc/passwd"}),
        lambda: json_grammar({"type": "object", "properties": 3}),
        lambda: json_grammar({"type": "string", "pattern": "((("}),
        lambda: regex_grammar("(["),
        lambda: json_grammar({"enum": ["x" * MOST_CHARACTERS]}),
        lambda: json_grammar({"allOf": [False]}),
    ],
)
def test_forms_that_cannot_be_used_are_refused(grammar):
    with pytest.raises(InputError) as caught:
        vocabulary().check(grammar())
    assert len(str(caught.value)) < 400


def test_a_token_outside_the_form_is_an_error():
    constraint = vocabulary().constraint(choice_grammar(["yes"]))
    with pytest.raises(FovealError, match="form of the answer"):
        constraint.accept(processor().tokenizer.encode_text("no")[0])
