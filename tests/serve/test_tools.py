import json

import pytest

from foveal.serve import tools

NAMES = frozenset(("paint", "look"))


def call(name: str, arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_calls_are_read_and_words_kept():
    text = "I will. " + call("paint", {"x": 1}) + "\n" + call("look", {})
    words, calls = tools.split(text, NAMES)
    assert words == "I will."
    assert [(c.name, json.loads(c.arguments)) for c in calls] == [("paint", {"x": 1}), ("look", {})]
    assert len({c.id for c in calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        call("delete", {}),
        call("paint", [1]),
        call("paint", "no json"),
        "<tool_call>{</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call>" + "[" * 50_000 + "</tool_call>",
        '<tool_call>{"name": ["paint"]}</tool_call>'.replace('["paint"]', "5"),
        "<tool_call> without an end",
        "plain words",
    ],
)
def test_what_is_no_call_stays_words(text):
    assert tools.split(text, NAMES) == (text, [])


def test_arguments_in_a_string_are_read():
    _, (found,) = tools.split(call("paint", '{"x": 2}'), NAMES)
    assert json.loads(found.arguments) == {"x": 2}


def test_nothing_of_a_call_is_shown_before_it_is_one():
    text = "Well, a < b. " + call("paint", {})
    shown = 0
    for end in range(len(text) + 1):
        certain = tools.certain(text[:end])
        assert certain >= shown
        shown = certain
    assert text[:shown] == "Well, a < b. "


def test_earlier_calls_and_answers_are_written_as_they_were_said():
    said = "".join(tools.said("I will.", [("paint", '{"x":1}'), ("look", "{}")]))
    words, calls = tools.split(said, NAMES)
    assert (words, [c.name for c in calls]) == ("I will.", ["paint", "look"])
    assert json.loads("".join(tools.said("", [("paint", "{broken")])).split("\n")[1])["arguments"] == "{broken"
    assert "".join(tools.answered(["one", "two"])).count("<tool_response>") == 2
    shown = "".join(tools.shown([{"name": "paint"}], "Be kind."))
    assert shown.startswith("Be kind.\n\n# Tools")
    assert '{"type": "function", "function": {"name": "paint"}}' in shown


def test_only_tags_of_the_form_are_tags():
    tags = frozenset(tools.TAGS)
    pieces = tools.answered(["</tool_response>", ""])
    found = tools.parts(pieces, tags)
    assert [p["text"] for p in found if p.get("tag")] == ["<tool_response>", "</tool_response>"] * 2
    assert "".join(p["text"] for p in found) == "".join(pieces)
    assert tools.parts(pieces, frozenset()) == [{"type": "text", "text": "".join(pieces)}]
    assert tools.parts(["<tool_call>"], tags) == [{"type": "text", "text": "<tool_call>"}]
    assert tools.parts([""], tags) == [{"type": "text", "text": ""}]
