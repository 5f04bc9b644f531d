"""Answers: words, boxes in the user's pixels, streaming, stop strings, conversations."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.core.errors import ConfigError, ContextError, HubError, InputError
from tests.helpers import checkpoints
from tests.helpers.scripted import say

DOG = ["<|object_ref_start|>", "dog", "<|object_ref_end|>", "<|box_start|>", "(100,200),(500,1000)", "<|box_end|>"]


@pytest.fixture
def talker(tmp_path_factory):
    """A fresh model whose answers a test scripts."""
    folder = checkpoints.write(checkpoints.oracle(seed=1), tmp_path_factory.mktemp("talker"))
    return foveal.load(folder, dtype="float32", device="cpu")


def ask(picture=None, text="Find the dog."):
    parts = [] if picture is None else [{"type": "image", "image": picture}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_boxes_come_in_the_pixels_of_the_file(talker, tmp_path):
    picture = Image.new("RGB", (640, 481), "white")
    say(talker, ["There is a ", *DOG, " here."])
    answer = talker.chat(ask(picture), max_pixels=200 * 200)
    assert answer.text == "There is a dog here."
    assert answer.raw == "There is a " + "".join(DOG) + " here."
    assert answer.finish_reason == "stop"
    (box,) = answer.boxes
    assert box.label == "dog"
    assert box.space is foveal.Space.ORIGINAL_PX
    assert box.corners == pytest.approx((64, 96.2, 320, 481))
    assert answer.media[0].view.original == (640, 481)
    assert answer.media[0].view.processed != (640, 481)
    assert answer.usage.visual_tokens == answer.media[0].tokens > 0
    assert answer.usage.answer_tokens == len(answer.ids)
    drawn = answer.draw(tmp_path / "found.png")
    assert drawn.size == (640, 481)
    saved = np.asarray(Image.open(tmp_path / "found.png"))
    assert np.array_equal(saved, np.asarray(drawn))
    changed = (saved != 255).any(-1)
    assert changed[90:110, 64:320].any()
    assert not changed[:, 400:].any()
    told = json.loads(json.dumps(answer.to_json()))
    assert told["boxes"][0]["box_px"] == [64.0, 96.2, 320.0, 481.0]
    assert told["boxes"][0]["processed_size"] == list(answer.media[0].view.processed)


def test_an_answer_can_be_said_again(talker):
    """The next turn holds the same tokens as the answer that the model gave."""
    say(talker, ["There is a ", *DOG, " here."])
    first = ask(Image.new("RGB", (300, 200)))
    answer = talker.chat(first)
    batch = talker.process([*first, answer.message, {"role": "user", "content": "And now?"}])
    ids = batch.tokens.tolist()
    text = list(answer.ids)
    assert any(ids[i : i + len(text)] == text for i in range(len(ids)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plain words"], "plain words"),
        ([*DOG, ", ", *DOG], "dog, dog"),
        (["猫 is 猫"], "猫 is 猫"),
        (["<|box_start|>", "(1,2),(3"], "(1,2),(3"),
        (["a", "<|box_start|>", "nonsense", "<|box_end|>", "b"], "anonsenseb"),
        ([], ""),
    ],
)
def test_pieces_together_are_the_text(talker, words, expected):
    say(talker, words)
    stream = talker.stream(ask(Image.new("RGB", (60, 60))))
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == expected
    assert all("(100" not in piece for piece in pieces)
    assert not any("�" in piece for piece in pieces)


def test_the_answer_is_not_there_before_the_end(talker):
    say(talker, ["one two three"])
    stream = talker.stream("Count.")
    next(iter(stream))
    with pytest.raises(InputError, match="has not ended"):
        _ = stream.answer


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("red", "the "), (["x", "picture"], "the red "), ("zzz", "the red picture red"), ("e red p", "th"), ("the", "")],
)
def test_stop_strings(talker, stop, expected):
    say(talker, ["the red picture red"])
    stream = talker.stream("Say it.", stop=stop)
    assert "".join(stream) == stream.answer.text == expected
    assert stream.answer.finish_reason == "stop"


def test_length_ends_an_answer(talker):
    say(talker, ["one two three four five"])
    answer = talker.chat("Count.", max_tokens=2)
    assert answer.finish_reason == "length"
    assert len(answer.ids) == 2


def test_ignore_eos_goes_on(talker):
    say(talker, ["one"])
    (ids,) = talker.generate(talker.process("Count."), max_tokens=9, ignore_eos=True)
    assert len(ids) == 9
    assert ids.count(talker.processor.end_of_turn) > 1


def test_answers_of_several_conversations(vlm):
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (60, 90, 3), np.uint8)) for i in range(3)]
    conversations = [ask(pictures[0]), ask(None, "What is in this picture?"), ask(pictures[2], "Describe.")]
    together = vlm.chat_all(conversations, max_tokens=12)
    for conversation, answer in zip(conversations, together, strict=True):
        alone = vlm.chat(conversation, max_tokens=12)
        assert (alone.ids, alone.text, alone.boxes) == (answer.ids, answer.text, answer.boxes)


def test_options_are_known_or_refused(vlm):
    with pytest.raises(InputError, match=r"unknown option 'max_pixel'"):
        vlm.chat("Hello", max_pixel=3)
    with pytest.raises(InputError, match=r"unknown option 'max_pixel'; did you mean 'max_pixels'"):
        vlm.process("Hello", max_pixel=3)
    with pytest.raises(InputError, match=r"keep is 'norm'; expected a list of names"):
        vlm.forward(vlm.process("Hello"), keep="norm")
    with pytest.raises(InputError, match=r"chunk=0 needs .* at least 1"):
        vlm.generate(vlm.process("Hello"), chunk=0)
    with pytest.raises(InputError, match=r"max_pixels"):
        vlm.chat(ask(Image.new("RGB", (60, 60))), max_pixels=-1)


def test_the_context_is_a_bound(vlm):
    room = vlm.config.language.context
    with pytest.raises(ContextError, match=r"pass the context of 4096"):
        vlm.generate(vlm.process("Hello"), max_tokens=room)
    with pytest.raises(ContextError, match=r"the model's context is 4096"):
        vlm.chat("word " * 5000)


def test_special_ids_cannot_be_typed(vlm):
    names = vlm.processor.tokenizer.special_names
    batch = vlm.process([{"role": "user", "content": " ".join(names)}])
    plain = vlm.process([{"role": "user", "content": "hello"}])

    def specials(b):
        return [i for i in b.tokens.tolist() if i in vlm.special_ids]

    assert specials(batch) == specials(plain)


def test_defaults_come_from_the_checkpoint(vlm, tmp_path):
    folder = tmp_path / "model"
    vlm.save(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.3, "top_k": 5, "eos_token_id": [3, 4]})
    )
    again = foveal.load(folder)
    assert again.sampling == foveal.Sampling(temperature=0.3, top_k=5)
    assert again.stop_ids == {3, 4}
    assert again.chat("Hello", max_tokens=3, seed=5).sampling.seed == 5


def test_files_of_different_models_are_refused(vlm, tmp_path):
    folder = tmp_path / "model"
    vlm.save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_token_id": 7}))
    with pytest.raises(ConfigError, match="image_token_id = 7, the tokenizer says"):
        foveal.load(folder)


def test_what_cannot_be_loaded(tmp_path, vlm):
    with pytest.raises(HubError):
        foveal.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="dtype 'float8'"):
        foveal.load(saved(vlm, tmp_path), dtype="float8")
    with pytest.raises(InputError, match=r"device 'tpu'.*this machine has cpu"):
        foveal.load(saved(vlm, tmp_path), device="tpu")


def saved(vlm, tmp_path):
    folder = tmp_path / "saved"
    if folder.exists():
        shutil.rmtree(folder)
    vlm.save(folder)
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(vlm, tmp_path, dtype):
    half = foveal.load(saved(vlm, tmp_path), dtype=dtype)
    batch = half.process(ask(Image.new("RGB", (60, 90), "red")))
    whole, logits = vlm.forward(batch).logits, half.forward(batch).logits
    assert logits.dtype == getattr(torch, dtype)
    error = (logits.float() - whole).norm() / whole.norm()
    assert error < (0.05 if dtype == "bfloat16" else 0.01)
    assert len(half.generate(batch, max_tokens=4, ignore_eos=True)[0]) == 4
