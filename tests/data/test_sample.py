"""Messages in one form; samples that name themselves."""

import pytest

from foveal.core.box import Box, Space
from foveal.core.errors import InputError
from foveal.data.sample import Sample, messages_for, normal, worded
from foveal.processing.colon_chat import ColonChat

BOX = Box(label="dog", corners=(1, 2, 3, 4), space=Space.ORIGINAL_PX)


def sample(*messages: dict) -> Sample:
    return Sample(id="7", messages=normal(messages), set="pets", where="pets.jsonl:8")


def test_normal_form() -> None:
    made = sample(
        {"role": "user", "content": [{"image": "a.png"}, "Where", {"type": "text", "text": " is it?"}, ""]},
        {"role": "assistant", "content": BOX},
    )
    assert made.messages == (
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Where is it?"}]},
        {"role": "assistant", "content": [{"type": "box", "box": BOX}]},
    )
    assert normal(made.messages) == made.messages
    assert made.media == [{"type": "image", "image": "a.png"}] and made.boxes == [BOX]
    assert made.text == "Where is it?\ndog"
    assert str(made) == "sample '7' of set 'pets' (pets.jsonl:8)"


def test_what_no_processor_takes_is_an_error() -> None:
    with pytest.raises(InputError, match=r"here: messages\[0\]: unknown role 'human'"):
        normal([{"role": "human", "content": "x"}], "here")


def test_questions_in_words() -> None:
    asked = sample(
        {"role": "user", "content": [{"image": "a.png"}, {"ref": "the dog"}]},
        {"role": "assistant", "content": BOX},
        {"role": "user", "content": ["Is ", {"ref": "the cat"}, " there?"]},
    )
    said = worded(asked)
    assert said.text == "Where is the dog?\ndog\nIs the cat there?"
    assert all(p["type"] in ("text", "image", "box") for p in said.parts)
    assert messages_for(asked, object()) == list(said.messages)
    assert messages_for(asked, ColonChat) == list(asked.messages)
