import numpy as np
import pytest
from PIL import Image

from foveal.core.box import Box, Space
from foveal.core.errors import InputError
from foveal.processing.messages import (
    LOW_DETAIL_PX,
    AskPart,
    BoxPart,
    ImagePart,
    Message,
    TextPart,
    VideoPart,
    parse_conversation,
    parse_conversations,
)

PICTURE = Image.new("RGB", (4, 3))
BOX = Box(label="cat", corners=(1, 1, 2, 2), space=Space.ORIGINAL_PX)


def part(value):
    (message,) = parse_conversation([{"role": "user", "content": [value]}])
    (only,) = message.parts
    return only


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hi", TextPart(text="hi")),
        ({"type": "text", "text": "<think>", "tag": True}, TextPart(text="<think>", tag=True)),
        ({"type": "text", "text": "hi"}, TextPart(text="hi")),
        ({"text": "hi"}, TextPart(text="hi")),
        (PICTURE, ImagePart(source=PICTURE)),
        ({"type": "image", "image": "a.jpg"}, ImagePart(source="a.jpg")),
        ({"image": b"\xff\xd8"}, ImagePart(source=b"\xff\xd8")),
        (
            {"type": "image", "image": "a.jpg", "min_pixels": 4, "max_pixels": 900},
            ImagePart(source="a.jpg", min_pixels=4, max_pixels=900),
        ),
        (
            {"type": "image", "image": "a.jpg", "resized_height": 28, "resized_width": 56},
            ImagePart(source="a.jpg", resized=(56, 28)),
        ),
        (
            {"type": "image_url", "image_url": "data:image/png;base64,AA=="},
            ImagePart(source="data:image/png;base64,AA=="),
        ),
        ({"type": "image_url", "image_url": {"url": "a.jpg"}}, ImagePart(source="a.jpg")),
        ({"type": "image_url", "image_url": {"url": "a.jpg", "detail": "auto"}}, ImagePart(source="a.jpg")),
        (
            {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}},
            ImagePart(source="a.jpg", max_pixels=LOW_DETAIL_PX),
        ),
        (
            {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}, "max_pixels": 1000},
            ImagePart(source="a.jpg", max_pixels=1000),
        ),
        ({"type": "video_url", "video_url": {"url": "a.mp4"}, "fps": 1}, VideoPart(source="a.mp4", fps=1.0)),
        (
            {"type": "video", "video": "a.mp4", "nframes": 8, "video_start": 0, "video_end": 2.5, "max_pixels": None},
            VideoPart(source="a.mp4", nframes=8, start_s=0.0, end_s=2.5),
        ),
        (
            {"type": "video", "video": [PICTURE, PICTURE], "sample_fps": 0.5, "total_pixels": 10**6},
            VideoPart(source=(PICTURE, PICTURE), sample_fps=0.5, total_pixels=10**6),
        ),
        ({"type": "image", "url": "a.png", "max_pixels": 9000}, ImagePart(source="a.png", max_pixels=9000)),
        ({"type": "image", "path": "a.png"}, ImagePart(source="a.png")),
        ({"type": "image", "base64": "AAAA"}, ImagePart(source="data:application/octet-stream;base64,AAAA")),
        ({"type": "video", "path": "a.mp4", "fps": 1}, VideoPart(source="a.mp4", fps=1.0)),
        (BOX, BoxPart(box=BOX)),
        ({"type": "box", "box": BOX}, BoxPart(box=BOX)),
    ],
)
def test_every_form_of_a_part(value, expected):
    assert part(value) == expected


def test_arrays_are_pictures_or_videos_by_their_shape():
    assert isinstance(part(np.zeros((4, 5, 3), np.uint8)), ImagePart)
    assert isinstance(part(np.zeros((4, 5), np.uint8)), ImagePart)
    clip = part(np.zeros((2, 4, 5, 3), np.uint8))
    assert isinstance(clip, VideoPart)
    assert len(clip.source) == 2


def test_every_form_of_a_conversation():
    hi = Message(role="user", parts=(TextPart(text="hi"),))
    assert parse_conversation("hi") == [hi]
    assert parse_conversation({"role": "user", "content": "hi"}) == [hi]
    assert parse_conversation([{"role": "user", "content": {"type": "text", "text": "hi"}}]) == [hi]
    assert parse_conversation([hi]) == [hi]
    assert parse_conversations("hi") == [[hi]]
    assert parse_conversations([hi, hi]) == [[hi, hi]]
    assert parse_conversations(["hi", [hi]]) == [[hi], [hi]]
    assert parse_conversation([{"role": "user", "content": []}]) == [Message(role="user", parts=())]


WRONG_MESSAGES = [
    (3, "of type int"),
    ([], "empty"),
    (b"hi", "of type bytes"),
    ([3], r"messages\[0\] is of type int"),
    ([{"role": "usr", "content": ""}], "unknown role 'usr'; did you mean 'user'"),
    ([{"role": ["user"], "content": ""}], "unknown role"),
    ([{"role": "user"}], "no 'content'"),
    ([{"content": ""}], "no 'role'"),
    ([{"role": "user", "content": "", "contents": ""}], "unknown key 'contents'; did you mean 'content'"),
    ([{"role": "assistant", "content": "", "tool_calls": []}], "'tool_calls' has no place"),
    ([{"role": "tool", "content": "", "tool_call_id": "x"}], "'tool_call_id' has no place"),
    ([{"role": "user", "content": "", "name": "<|im_end|>"}], "'name' has no place"),
    ([{"role": "user", "content": None}], "is None"),
    ([{"role": "user", "content": b"hi"}], "of type bytes"),
    (["hi", {"role": "user", "content": "x"}], r"messages\[1\] is of type dict, but messages\[0\]"),
]
WRONG_PARTS = [
    (3, "of type int"),
    ({}, "no 'type'"),
    ({"image": "a", "text": "b"}, "no 'type'"),
    ({"type": "img", "image": "a"}, "unknown part type 'img'; did you mean 'image'"),
    ({"type": {}, "image": "a"}, "unknown part type"),
    ({"type": "image"}, "has no 'image'"),
    ({"type": "image", "image": None}, "has no 'image'"),
    ({"type": "image", "image": "a", "max_pixel": 3}, "did you mean 'max_pixels'"),
    ({"type": "image", "image": "a", "fps": 3}, "unknown key 'fps'"),
    ({"type": "image", "image": "a", "url": "b"}, "more than once"),
    ({"type": "text", "text": "a", "url": "b"}, "unknown key 'url'"),
    ({"type": "image", "path": None}, "has no 'image'"),
    ({"type": "text", "text": "a", "tag": "yes"}, "expected true or false"),
    ({"type": "text", "text": 3}, "'text' is of type int"),
    ({"type": "text", "text": "a", "cache_control": {}}, "unknown key 'cache_control'"),
    ({"type": "box", "box": (1, 2, 3, 4)}, "expected a foveal Box"),
    ({"type": "image", "image": "a", "max_pixels": 0}, "'max_pixels' is 0"),
    ({"type": "image", "image": "a", "max_pixels": "9"}, "'max_pixels' is '9'"),
    ({"type": "image", "image": "a", "max_pixels": True}, "'max_pixels' is True"),
    ({"type": "image", "image": "a", "max_pixels": 2.5}, "whole number"),
    ({"type": "image", "image": "a", "max_pixels": 9, "min_pixels": 10}, "min_pixels 10 is above max_pixels 9"),
    ({"type": "image", "image": "a", "resized_width": 9}, "belong together"),
    ({"type": "image_url", "image_url": {}}, "no 'url'"),
    ({"type": "image_url", "image_url": {"url": "a", "detail": "hi"}}, "detail 'hi'"),
    ({"type": "image_url", "image_url": {"url": "a", "details": "low"}}, "did you mean 'detail'"),
    ({"type": "video_url", "video_url": {"url": "a", "detail": "low"}}, "unknown key 'detail'"),
    ({"type": "video", "video": "a", "fps": 2, "nframes": 4}, "give one"),
    ({"type": "video", "video": "a", "fps": float("nan")}, "'fps' is nan"),
    ({"type": "video", "video": "a", "fps": 10**400}, "'fps' is 1000"),
    ({"type": "image", "image": "a", "max_pixels": 10**400}, "'max_pixels' is 1000"),
    ({"type": "video", "video": "a", "fps": -1}, "'fps' is -1"),
    ({"type": "video", "video": "a", "sample_fps": 2}, "describes a list of frames"),
    ({"type": "video", "video": "a", "video_start": 3, "video_end": 3}, "not before"),
    ({"type": "video", "video": []}, "is empty"),
    ({"type": "video", "video": [PICTURE], "fps": 2}, "'fps' samples a video file"),
]


@pytest.mark.parametrize(("messages", "error"), WRONG_MESSAGES)
def test_wrong_messages_say_what_is_wrong(messages, error):
    with pytest.raises(InputError, match=error):
        parse_conversations(messages)


@pytest.mark.parametrize(("value", "error"), WRONG_PARTS)
def test_wrong_parts_say_where_and_what(value, error):
    with pytest.raises(InputError, match=r"messages\[0\]\.content\[0\]") as caught:
        part(value)
    assert caught.match(error)


def test_questions_about_regions():
    (message,) = parse_conversation([{"role": "user", "content": [{"ref": "a dog"}, {"grounding": True}]}])
    assert message.parts == (AskPart(ref="a dog"), AskPart())
    for part, words in (
        ({"ref": " "}, "'ref' is ' '"),
        ({"ref": 3}, "'ref' is 3"),
        ({"grounding": "x"}, "'grounding' is"),
    ):
        with pytest.raises(InputError, match=words):
            parse_conversation([{"role": "user", "content": [part]}])
