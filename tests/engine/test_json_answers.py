"""Boxes and points as JSON through the whole engine."""

import json

import pytest
from PIL import Image

import foveal
from tests.helpers import checkpoints, qwen2_5_vl, qwen3_vl
from tests.helpers.scripted import say

WORDS = (
    'Here:\n```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "dog"},\n'
    '\t{"point_2d": [15, 25], "label": "ear"}\n]\n```\nDone.'
)


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def talker(request, tmp_path_factory):
    """A fresh model whose answers a test scripts."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen3_vl":
        qwen3_vl.write(qwen3_vl.oracle(), folder)
    else:
        checkpoints.write(qwen2_5_vl.oracle(), folder)
    return foveal.load(folder, dtype="float32", device="cpu")


def ask(picture, text="Find the dog."):
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]


def test_boxes_and_points_come_in_the_pixels_of_the_file(talker):
    picture = Image.new("RGB", (640, 481), "white")
    say(talker, [WORDS])
    stream = talker.stream(ask(picture), max_pixels=200 * 200, min_pixels=1024)
    pieces = list(stream)
    answer = stream.answer
    assert "".join(pieces) == answer.text == "Here:\ndog, ear\nDone."
    assert len(pieces) > 3
    assert answer.raw == WORDS
    view = answer.media[0].view
    wide, high = (1000, 1000) if talker.family.name == "qwen3_vl" else view.processed
    (box,), (point,) = answer.boxes, answer.points
    assert (box.label, point.label) == ("dog", "ear")
    assert box.corners == pytest.approx((10 / wide * 640, 20 / high * 481, 30 / wide * 640, 40 / high * 481))
    assert point.place == pytest.approx((15 / wide * 640, 25 / high * 481))
    told = json.loads(json.dumps(answer.to_json()))
    assert told["points"][0]["point_px"] == [round(v, 2) for v in point.place]
    assert answer.draw().size == (640, 481)


def test_an_answer_can_be_said_again(talker):
    """The next turn holds the same tokens as the answer that the model gave."""
    picture = Image.new("RGB", (64, 48), "white")
    say(talker, [WORDS])
    first = ask(picture)
    answer = talker.chat(first)
    more = talker.process([*first, answer.message, {"role": "user", "content": "And?"}])
    start = len(talker.process(first).tokens)
    assert more.tokens[start : start + len(answer.ids)].tolist() == list(answer.ids)


def test_a_box_of_the_user_is_written_in_the_models_way(talker):
    picture = Image.new("RGB", (200, 100), "white")
    box = foveal.Box(label="cat", corners=(0, 0, 100, 100), space=foveal.Space.ORIGINAL_PX)
    batch = talker.process([{"role": "user", "content": [picture, "What is in ", box, "?"]}])
    text = talker.processor.tokenizer.decode(batch.tokens.tolist())
    wide, high = (1000, 1000) if talker.family.name == "qwen3_vl" else batch.media[0].view.processed
    assert f'```json\n[\n\t{{"bbox_2d": [0, 0, {wide // 2}, {high}], "label": "cat"}}\n]\n```?' in text
