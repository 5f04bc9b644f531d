"""DeepSeek-VL's chat format: who says what, what is learned, and transformers' variation."""

from itertools import groupby
from pathlib import Path

import pytest

from foveal.core.errors import InputError
from foveal.processing.messages import parse_conversation
from foveal.processing.published import read_tokenizer
from foveal.processing.segments import MediumSegment, SpecialSegment, TextSegment, as_text
from foveal.processing.template import TemplateChat, choose_format
from foveal.processing.user_assistant import BEGIN, END, IMAGE, SYSTEM, UserAssistant, arranged

ORIGINAL, PORT = UserAssistant(), UserAssistant(original=False, image_id=True)
GOLDEN = Path(__file__).parents[1] / "golden/deepseek_vl"
TOKENIZER = read_tokenizer(GOLDEN, allow=("add_bos_token",))


def no_boxes(boxes):
    raise AssertionError(boxes)


def said(chat, messages, *, generate=True):
    return as_text(chat.render(parse_conversation(messages), boxes=no_boxes, generate=generate))


def turn(role, *parts):
    return {
        "role": role,
        "content": [{"type": "image", "image": "x"} if p is None else {"type": "text", "text": p} for p in parts],
    }


TALK = [turn("user", None, " What is this? "), turn("assistant", "\nA cat. "), turn("user", "And", None, " this", None)]


def test_the_published_form():
    expected = (
        f"{SYSTEM}\n\nUser: {IMAGE} What is this?\n\nAssistant: A cat.{END}User: And{IMAGE} this{IMAGE}\n\nAssistant:"
    )
    assert said(ORIGINAL, TALK) == expected
    assert said(PORT, TALK) == expected
    assert said(ORIGINAL, TALK, generate=False) == expected.removesuffix("\n\nAssistant:")
    assert said(ORIGINAL, TALK[:2], generate=False).endswith(f"Assistant: A cat.{END}")


def test_a_system_text_takes_the_place_of_the_default_one():
    assert said(ORIGINAL, [turn("system", " Be brief. "), turn("user", "a")]) == "Be brief. \n\nUser: a\n\nAssistant:"
    assert said(ORIGINAL, [turn("system", ""), turn("user", "a")]) == "User: a\n\nAssistant:"
    assert said(UserAssistant(default_system="Hm."), "a") == "Hm.\n\nUser: a\n\nAssistant:"
    assert said(PORT, [turn("system", " Be brief. "), turn("user", "a")]) == (
        f"{SYSTEM}\n\nSystem: Be brief.{END}User: a\n\nAssistant:"
    )


def test_texts_of_one_message():
    assert said(ORIGINAL, [turn("user", " ", "\n", "a", " b", " ")]).endswith("User: a b\n\nAssistant:")
    assert said(PORT, [turn("user", " a", "b ", None, " c")]).endswith(f"User: a b {IMAGE} c\n\nAssistant:")
    assert said(ORIGINAL, [turn("user", " ")]).endswith("\n\nUser:Assistant:")
    assert said(PORT, [turn("user", " ")]).endswith("User: \n\nAssistant:")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([turn("user", "a"), turn("system", "b")], "role 'system' after the first message"),
        ([turn("user", "a"), turn("tool", "b")], "role 'tool'"),
        ([turn("system", "a", None)], "a picture in the system message"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], "images only"),
    ],
)
def test_what_the_format_has_no_place_for(messages, message):
    with pytest.raises(InputError, match=message):
        said(ORIGINAL, messages)


def test_what_is_learned_is_the_answer_with_its_space_and_end():
    segments = ORIGINAL.render(parse_conversation(TALK[:2]), boxes=no_boxes, generate=False)
    learned = [s for s in segments if s.learned]
    assert as_text(learned) == f" A cat.{END}"
    assert {s.role for s in learned} == {"assistant"}
    assert {s.turn for s in learned} == {1}
    assert [role for role, _ in groupby(s.role for s in segments)] == ["system", "user", "assistant"]
    assert [s.medium for s in segments if isinstance(s, MediumSegment)] == [0]


def test_an_answer_is_read_back_as_it_was_said():
    """A model goes on after `Assistant:`; its words and those of the conversation are the same tokens."""
    asked = TOKENIZER.encode_segments(ORIGINAL.render(parse_conversation("Hi"), boxes=no_boxes, generate=True)).ids
    told = [turn("user", "Hi"), turn("assistant", "A cat, 7.")]
    whole = TOKENIZER.encode_segments(ORIGINAL.render(parse_conversation(told), boxes=no_boxes, generate=False)).ids
    assert whole[: len(asked)] == asked
    assert whole[len(asked) :] == [*TOKENIZER.encode_text(" A cat, 7."), TOKENIZER.special(END)]


def test_every_sequence_begins_with_its_token():
    first = arranged([TextSegment(text="a", role="user", turn=0)], [])
    assert first[0] == SpecialSegment(name=BEGIN, role="user", turn=0)
    assert arranged(first, []) == first
    assert arranged([], []) == [SpecialSegment(name=BEGIN)]


def test_templates_that_write_the_same_are_this_format():
    released = (GOLDEN / "chat_template.jinja").read_text(encoding="utf-8")
    own = PORT.template()
    assert own is not None
    for template in (released, own):
        assert choose_format(template, PORT, split=TOKENIZER.split) is PORT
    assert ORIGINAL.template() is None
    other = choose_format(released.replace("User: ", "Human: "), PORT, split=TOKENIZER.split)
    assert isinstance(other, TemplateChat)
    assert said(other, [turn("user", "Hi"), turn("assistant", "Ho")]).endswith(
        f"Human: Hi\n\nAssistant: Ho{END}Assistant:"
    )
