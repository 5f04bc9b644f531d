"""DeepSeek-VL2's chat format: order, white space, roles, and what is learned. Ids are in tests/parity."""

import pytest

from foveal.core.box import Box, Space
from foveal.core.errors import InputError
from foveal.processing.colon_chat import ColonChat
from foveal.processing.messages import parse_conversation
from foveal.processing.segments import MediumSegment, TextSegment, as_text

CHAT = ColonChat()
BEGIN, END = CHAT.begin, CHAT.end
IMAGE = {"type": "image", "image": "a.png"}


def render(messages, *, generate=True, chat=CHAT):
    def boxes(found):
        return [TextSegment(text=f"<{b.label}>") for b in found]

    return chat.render(parse_conversation(messages), boxes=boxes, generate=generate)


def text(messages, **options):
    return as_text(render(messages, **options))


def user(*parts):
    return {"role": "user", "content": list(parts)}


def said(*parts):
    return {"role": "assistant", "content": list(parts)}


def test_a_question():
    assert text("Hi") == f"{BEGIN}<|User|>: Hi\n\n<|Assistant|>:"
    assert text("Hi", generate=False) == f"{BEGIN}<|User|>: Hi\n\n"
    assert text("") == f"{BEGIN}<|User|>:<|Assistant|>:"


def test_turns():
    messages = [user("a", IMAGE), said("b"), user(IMAGE, "c")]
    expected = f"{BEGIN}<|User|>: a<image>\n\n<|Assistant|>:b{END}<|User|>: <image>c\n\n<|Assistant|>:"
    assert text(messages) == expected
    assert [s.medium for s in render(messages) if isinstance(s, MediumSegment)] == [0, 1]
    assert text([user("a"), user("b")]) == (f"{BEGIN}<|User|>: a\n\n<|Assistant|>:<|User|>: b\n\n<|Assistant|>:"), (
        "as released, every question ends where an answer may begin"
    )


def test_white_space_at_the_ends_goes():
    assert text([user("  \n", " a ", IMAGE, " b ", "\n ")]) == f"{BEGIN}<|User|>: a <image> b\n\n<|Assistant|>:"
    assert text([user(" ", IMAGE, " ")]) == f"{BEGIN}<|User|>: <image>\n\n<|Assistant|>:"
    assert text([user("a"), said("\n b \n")], generate=False).endswith(f"<|Assistant|>:b{END}")


def test_a_system_message_comes_first():
    assert text([{"role": "system", "content": " Be brief. "}, user("a")]) == (
        f"{BEGIN}Be brief.<|User|>: a\n\n<|Assistant|>:"
    )
    assert text([{"role": "system", "content": "Go."}]) == f"{BEGIN}Go.<|Assistant|>:"


def test_an_answer_that_is_begun_goes_on():
    begun = [user("a"), said("The ")]
    assert text(begun) == f"{BEGIN}<|User|>: a\n\n<|Assistant|>:The"
    assert text([user("a"), said("")]) == text([user("a")])


def test_boxes_are_written_by_the_family():
    box = Box(label="dog", corners=(0, 0, 1, 1), space=Space.RELATIVE_999)
    assert text([user("find ", box, box)]) == f"{BEGIN}<|User|>: find <dog><dog>\n\n<|Assistant|>:"


def test_questions_about_regions():
    assert text([user({"grounding": True}, "Locate ", {"type": "ref", "ref": "a dog"})]) == (
        f"{BEGIN}<|User|>: <|grounding|>Locate <|ref|>a dog<|/ref|>\n\n<|Assistant|>:"
    )
    named = [s.text for s in render([user({"ref": "<|det|>"})]) if isinstance(s, TextSegment)]
    assert "<|det|>" in named, "the words stay words"


def learned(segments):
    return [as_text([s]) for s in segments if s.learned]


def test_answers_are_learned():
    messages = [user("a", IMAGE), said("b"), user("c"), said("d", "e")]
    assert learned(render(messages, generate=False)) == [BEGIN, "b", END, "d", "e", END]
    whole = render(messages, generate=False, chat=ColonChat(learn_prompt=True))
    assert [s for s in whole if not s.learned] == [s for s in whole if isinstance(s, MediumSegment)]


def test_speakers_and_turns():
    segments = render([user("a"), said("b")], generate=False)
    assert {(s.role, s.turn) for s in segments} == {("system", -1), ("user", 0), ("assistant", 1)}


def test_the_colon_before_an_answer_is_alone():
    colons = [s for s in render([user("a"), said("b")]) if as_text([s]) == ":"]
    assert [getattr(s, "alone", None) for s in colons] == [True]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("a"), {"role": "tool", "content": "x"}], r"messages\[1\].*no turns of tools"),
        ([user("a"), {"role": "system", "content": "x"}], r"messages\[1\].*no system message after others"),
        ([user("a"), said(IMAGE)], "an image in the assistant's words"),
        ([{"role": "system", "content": [IMAGE]}, user("a")], "an image in the system's words"),
    ],
)
def test_what_the_format_does_not_have(messages, message):
    with pytest.raises(InputError, match=message):
        render(messages)


def test_it_has_no_template():
    assert CHAT.template() is None
