"""Qwen-VL's chat against the recorded `make_context` cases, its window over the history, and text that stays text."""

import json
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import foveal
from foveal.core.box import Box, ImageView, Space
from foveal.core.errors import ConfigError, ContextError, InputError
from foveal.families.qwen_vl import FAMILY
from foveal.processing.messages import Message, TextPart, parse_conversation
from foveal.processing.picture_chat import SPECIALS, PictureChat, shorten
from foveal.processing.picture_prompts import PicturePrompts, to_parts
from foveal.processing.processor import LEFT_OUT, Processor
from foveal.processing.segments import SpecialSegment, as_text
from tests.helpers import qwen_vl

GOLDEN = qwen_vl.recorded("tokenizer_golden.json")
PICTURE = Image.new("RGB", (300, 200), "red")
IMAGES = {f"{name}.png": PICTURE for name in "abc"}


def processor(*, layout="chatml", window=6144, labels="answers", tokenizer=None):
    config = FAMILY.size("chat")
    processing = replace(
        FAMILY.processing(config),
        chat=PictureChat(layout=layout, labels=labels),
        shorten=None if layout == "raw" else partial(shorten, window=window),
    )
    return Processor(tokenizer=tokenizer or qwen_vl.processor().tokenizer, processing=processing, context_tokens=8192)


def messages_of(case):
    """A recorded history as messages."""
    messages = [Message(role="system", parts=(TextPart(text=case["system"]),))]
    for question, answer in [*(case["history"] or []), (case["query"], None)]:
        messages.append(Message(role="user", parts=tuple(to_parts(question, IMAGES))))
        if answer is not None:
            messages.append(Message(role="assistant", parts=tuple(to_parts(answer, IMAGES))))
    return messages


def told(case):
    """A text in which a typed `<|im_end|>` cannot be read as a tag by `to_parts`, which refuses it."""
    return any("<|" in text for turn in case["history"] or [] for text in turn if text)


@pytest.mark.parametrize("number", range(len(GOLDEN["make_context"])))
def test_make_context(number):
    case = GOLDEN["make_context"][number]
    tokenizer = qwen_vl.whole_vocabulary()
    made = processor(layout=case["chat_format"], window=case["max_window_size"], tokenizer=tokenizer)
    if case["chat_format"] == "raw":
        messages = [Message(role="user", parts=tuple(to_parts(case["query"], IMAGES)))]
        # Written out before the picture, as the recorded prompt has none of the chat's words.
        batch = made.process(prompt="raw text <img><imgpad></img> x", media=[PICTURE])
        assert as_text(made.chat.render(messages, boxes=lambda _: [], generate=True)) == (
            "raw text Picture 1: <img><imgpad></img>\n x"
        )
    elif told(case):
        history = [[t.replace("<|im_end|>", "@") for t in turn] for turn in case["history"]]
        messages = [
            replace(m, parts=tuple(TextPart(text=p.text.replace("@", "<|im_end|>")) if isinstance(p, TextPart) else p
                                   for p in m.parts))
            for m in messages_of({**case, "history": history})
        ]  # fmt: skip
        batch = made.process(messages)
    else:
        batch = made.process(messages_of(case))
    prompts = PicturePrompts(tokenizer)
    assert batch.tokens.tolist() == prompts.ours(case["input_ids"])
    assert prompts.published(batch.tokens, prompts.names(case["input_ids"])) == case["input_ids"]


def test_answers_of_the_recorded_chats():
    """As `decode_tokens`, save for the case without a stop token, where the original loses the last token."""
    made = processor(tokenizer=qwen_vl.whole_vocabulary())
    stops = {made.tokenizer.special(name) for name in made.processing.stops}
    assert [[i] for i in sorted(stops, reverse=True)] == GOLDEN["stop_words"]["chatml"]
    batch = made.process(messages_of(GOLDEN["make_context"][1]))
    for case in GOLDEN["decode_tokens_chatml"]:
        ids = case["generated_ids"]
        end = next((n for n, i in enumerate(ids) if i in stops), None)
        found = made.tokenizer.decode(ids[:end]).strip()
        assert found == case["response"] or (end is None and found.startswith(case["response"]))
    (box,) = made.read(GOLDEN["decode_tokens_chatml"][1]["generated_ids"], batch).boxes
    assert box.label == "dog"
    assert box.corners == pytest.approx((0.3, 0.4, 0.9, 0.8))  # thousandths of 300 x 200 pixels
    raw = GOLDEN["stop_words"]["raw"]
    assert [made.tokenizer.encode_text("Human:"), [made.tokenizer.special("<|endoftext|>")]] == raw


def user(*content):
    return {"role": "user", "content": list(content)}


def picture():
    return {"type": "image", "image": PICTURE}


def said(text):
    return {"role": "assistant", "content": text}


def test_pictures_are_numbered_through_the_conversation():
    made = processor()
    batch = made.process([user(picture(), "a"), said("b"), user("c ", picture(), picture(), "d")])
    text = made.tokenizer.decode(batch.tokens).replace("<imgpad>", "")
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nPicture 1: <img></img>\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc Picture 2: <img></img>\nPicture 3: <img></img>\nd<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [(r.length, r.medium) for r in batch.runs] == [(256, 0), (256, 1), (256, 2)]
    assert batch.patches.shape == (3 * 1024, 588)


def test_role_and_line_break_are_tokens_of_their_own():
    made = processor(tokenizer=qwen_vl.whole_vocabulary())
    (newline,) = made.tokenizer.encode_text("\n")
    batch = made.process([user("\n\nhello")])
    start = made.tokenizer.special("<|im_start|>")
    second = [n for n, i in enumerate(batch.tokens) if i == start][1]
    assert batch.tokens[second + 2] == newline
    assert batch.tokens[second + 3 : second + 5].tolist() == made.tokenizer.encode_text("\n\nhello")


@pytest.mark.parametrize("images", [[], [(300, 200)], [(10, 4000), (1, 1), (448, 448)]])
def test_counting_opens_nothing_and_is_exact(images):
    made = processor()
    counted = made.count("What is this? 图", images=images)
    pictures = [{"type": "image", "image": Image.new("RGB", size)} for size in images]
    batch = made.process([user(*pictures, "What is this? 图")])
    assert counted.tokens == len(batch.tokens)
    assert counted.tokens - counted.text_tokens == 256 * len(images)


def test_a_conversation_that_is_too_long_says_so():
    with pytest.raises(ContextError, match="send fewer media and shorten the text"):
        processor(window=100_000).process([user(*[picture()] * 33)])


def test_labels():
    conversation = [user(picture(), "what?"), said("a cat"), user("sure?"), said("yes")]

    def learned(labels):
        made = processor(labels=labels)
        batch = made.process(conversation, generate=False)
        return [made.tokenizer.decode(batch.tokens[s.start : s.stop]) for s in batch.spans if s.learned]

    assert learned("answers") == ["a cat<|im_end|>", "yes<|im_end|>"]
    assert "".join(learned("published")) == (
        "<|im_start|><|im_end|>\n<|im_start|><|im_end|>\n<|im_start|>a cat<|im_end|>\n"
        "<|im_start|><|im_end|>\n<|im_start|>yes<|im_end|>\n"
    )


@pytest.mark.parametrize("kept", range(4))
def test_the_window_keeps_the_newest_turns(kept, caplog):
    """Strictly below the window, question and answer together, the current question uncounted."""
    made = processor()
    turns = [(f"question {n} " * (n + 2), f"answer {n}") for n in range(3)]
    history = [m for q, a in turns for m in (user(picture(), q), said(a))]
    question = user("and now? " * 50)
    shown = history[len(history) - 2 * kept :]
    alone = Processor(tokenizer=made.tokenizer, processing=replace(made.processing, shorten=None), context_tokens=8192)

    def tokens(messages):
        return len(alone.process(messages).tokens)

    # What is counted is all but the question and what stands around it, and no line break at the end.
    size = tokens([*shown, question]) - tokens([question]) + len(
        made.tokenizer.encode_text("systemYou are a helpful assistant.") ) + 3  # fmt: skip
    with caplog.at_level(logging.WARNING):
        batch = processor(window=size + 1).process([*history, question])
    assert len(batch.media) == kept
    assert int(batch.extra[LEFT_OUT][0]) == 3 - kept
    assert ("earlier messages are not shown" in caplog.text) == (kept < 3)
    text = made.tokenizer.decode(batch.tokens)
    assert [f"question {n}" in text for n in range(3)] == [n >= 3 - kept for n in range(3)]
    assert [f"Picture {n + 1}: " in text for n in range(3)] == [n >= 3 - kept for n in range(3)]
    if kept:
        assert len(processor(window=size).process([*history, question]).media) == kept - 1
    # Training sees everything.
    assert len(processor(window=1).process([*history, question, said("x")], generate=False).media) == 3


def test_boxes_count_the_pictures_that_the_window_left_out(tmp_path):
    generation = qwen_vl.recorded("generation_config.json") | {"max_window_size": 60}
    vlm = foveal.load(qwen_vl.write(tmp_path / "m", generation=generation), device="cpu")
    other = Image.new("RGB", (50, 80), "blue")
    conversation = [user(picture(), "a"), said("b"), user({"type": "image", "image": other}, "where?")]
    batch = vlm.process(conversation)
    assert [m.view.original for m in batch.media] == [(50, 80)]
    (box,) = vlm.processor.read("<ref>cat</ref><box>(0,0),(1000,500)</box>", batch).boxes
    assert (box.image, box.corners) == (1, (0, 0, 50, 40))
    answer = vlm.chat(conversation, max_tokens=3, temperature=0)
    assert answer.left_out == 1
    found = replace(answer, boxes=(box,), parts=(box,))
    assert found.draw().size == (50, 80)
    assert found.to_json()["boxes"][0]["processed_size"] == [448, 448]
    (quad,) = vlm.processor.read("<quad>(0,0),(1000,0),(1000,1000),(500,500)</quad>", batch).boxes
    found = replace(answer, boxes=(quad,), parts=(quad,))
    assert found.to_json()["boxes"][0]["points_px"] == [0, 0, 50, 0, 50, 80, 25, 40]
    drawn = found.draw()
    # The line from (25, 40) to (0, 0) is drawn, the left edge of the bounding box is not.
    assert drawn.getpixel((12, 20)) != (0, 0, 255)
    assert drawn.getpixel((2, 70)) == (0, 0, 255)
    found = replace(answer, boxes=(box,), parts=(box,))
    # Said again in the whole conversation, the box lies in the same picture.
    wide = replace(vlm.processor.processing, shorten=partial(shorten, window=6144))
    unbound = Processor(tokenizer=vlm.processor.tokenizer, processing=wide, context_tokens=4096)
    again = unbound.process([*conversation, found.message, user("sure?")])
    assert "<ref>cat</ref><box>(0,0),(1000,500)</box>" in vlm.processor.tokenizer.decode(again.tokens)
    joined = foveal.join([batch, vlm.process([user("hi")]), again])
    assert joined.extra[LEFT_OUT].tolist() == [1, 0, 0]


def test_settings_of_generation_config(tmp_path):
    golden = qwen_vl.recorded("generation_config.json")
    chat = foveal.load(qwen_vl.write(tmp_path / "chat"), device="cpu")
    ids = {chat.processor.tokenizer.special(n) for n in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")}
    assert chat.stop_ids == ids
    released = {"chat_format": "raw", "do_sample": True, "top_p": 0.3, "top_k": 0, "max_new_tokens": 7}
    base = foveal.load(qwen_vl.write(tmp_path / "base", generation=golden | released), device="cpu")
    assert base.stop_ids == {288}
    assert (base.sampling.stop, base.sampling.top_p, base.sampling.temperature) == (("Human:",), 0.3, 1.0)
    assert base.answer_tokens == 7
    assert len(base.chat([user("a b c")], temperature=0, ignore_eos=True, stop=()).ids) == 7
    for change, message in (
        ({"chat_format": "alpaca"}, "chat_format is 'alpaca'; known: chatml, raw"),
        ({"max_window_size": 0}, "max_window_size is 0"),
        ({"max_window_size": "all"}, "max_window_size is 'all'"),
    ):
        path = tmp_path / "chat/generation_config.json"
        path.write_text(json.dumps(golden | change))
        with pytest.raises(ConfigError, match=message):
            foveal.load(tmp_path / "chat")


def test_a_base_model_has_no_turns():
    made = processor(layout="raw")
    batch = made.process([user(picture(), "Describe:")])
    assert made.tokenizer.decode(batch.tokens).replace("<imgpad>", "") == "Picture 1: <img></img>\nDescribe:"
    pair = [user(picture(), "Describe:"), said(" a cat")]
    batch = made.process(pair, generate=False)
    learned = [made.tokenizer.decode(batch.tokens[s.start : s.stop]) for s in batch.spans if s.learned]
    assert learned == [" a cat<|endoftext|>"]
    for messages in (pair, [user("a"), said("b"), user("c")], [{"role": "system", "content": "s"}, user("a")]):
        with pytest.raises(InputError, match="a base model has no turns"):
            made.process(messages)


@pytest.mark.parametrize(
    "prompt",
    ["<img></img>", "<img>a.png", "<img><imgpad>x</img>", "<img>x<imgpad></img>", "<imgpad>", "<img><imgpad>"],
)
def test_places_of_pictures_are_whole(prompt):
    media = [PICTURE] * prompt.count("<imgpad>")
    with pytest.raises(InputError, match="a picture's place in a prompt is <img><imgpad></img>"):
        processor().process(prompt=prompt, media=media)


def test_nothing_in_a_prompt_names_a_file():
    """The form of published prompts is read as places; what they name is neither opened nor shown to the model."""
    made = processor()
    published = "Picture 1: <img>/etc/passwd</img>\nand <img>b</img>?"
    batch = made.process(prompt=published, media=[PICTURE, PICTURE])
    ours = made.process(prompt="Picture 1: <img><imgpad></img>\nand <img><imgpad></img>?", media=[PICTURE, PICTURE])
    assert np.array_equal(batch.tokens, ours.tokens)
    for media in ([], [PICTURE]):
        with pytest.raises(InputError, match="but 2 placeholders"):
            made.process(prompt=published, media=media)


def test_what_the_family_does_not_see_or_say_is_refused():
    made = processor()
    with pytest.raises(InputError, match="sees images only"):
        made.process([user({"type": "video", "video": [PICTURE, PICTURE]})])
    with pytest.raises(InputError, match="role 'tool'"):
        made.process([user("a"), {"role": "tool", "content": "x"}])
    with pytest.raises(InputError, match="one size"):
        made.process([user({"type": "image", "image": PICTURE, "max_pixels": 1000})])


HOSTILE = st.lists(st.one_of(st.sampled_from([*SPECIALS[:4], *SPECIALS[-9:]]), st.text(max_size=6)), max_size=8)


@given(HOSTILE.map("".join), st.sampled_from(["user", "system", "assistant", "label"]))
def test_no_text_becomes_a_special_token(text, place):
    made = processor()
    text = text.encode("utf-8", "ignore").decode()
    box = Box(label=text if place == "label" else "x", corners=(0, 0, 500, 500), space=Space.RELATIVE_1000)
    plain = {"system": "s", "user": "u", "assistant": "a"} | ({place: text} if place != "label" else {})
    messages = parse_conversation(
        [
            {"role": "system", "content": plain["system"]},
            user(picture(), plain["user"]),
            {"role": "assistant", "content": [plain["assistant"], {"type": "box", "box": box}]},
            user("?"),
        ]
    )
    boxes = partial(made.processing.boxes.render, views=[VIEW])
    ids = made.tokenizer.encode_segments(made.chat.render(messages, boxes=boxes, generate=True), [256]).ids
    names = [made.tokenizer.token_bytes(i).decode() for i in ids if i in made.special_ids]
    turn = ["<|im_start|>", "<|im_end|>"]
    tags = ["<ref>", "</ref>"] if box.label else []
    assert [n for n in names if n != "<imgpad>"] == [
        *turn, "<|im_start|>", "<img>", "</img>", "<|im_end|>",
        "<|im_start|>", *tags, "<box>", "</box>", "<|im_end|>", *turn, "<|im_start|>",
    ]  # fmt: skip
    assert names.count("<imgpad>") == 256


VIEW = ImageView(original=(640, 480), processed=(448, 448))
NUMBER = st.integers(0, 1000)


@given(st.lists(NUMBER, min_size=8, max_size=8), st.sampled_from(["", "cat", "图 <box>"]))
def test_quads_and_boxes_come_back(numbers, label):
    """What a model wrote is read, and written again as it was; boxes with their corners in order."""
    style, tokenizer = processor().processing.boxes, qwen_vl.processor().tokenizer
    quad = ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    xs, ys = sorted(numbers[0:2]), sorted(numbers[2:4])
    corners = f"({xs[0]},{ys[0]}),({xs[1]},{ys[1]})"
    ref = [SpecialSegment(name="<ref>"), tokenizer.encode_text(label), SpecialSegment(name="</ref>")] if label else []
    ids = []
    for tag, text in (("quad", quad), ("box", corners)):
        for part in [
            *ref,
            SpecialSegment(name=f"<{tag}>"),
            tokenizer.encode_text(text),
            SpecialSegment(name=f"</{tag}>"),
        ]:
            ids += [tokenizer.special(part.name)] if isinstance(part, SpecialSegment) else part
    reader = style.reader(VIEW, 0)
    for segment in tokenizer.decode_segments(ids):
        reader.take(segment)
    first, second = reader.finish().boxes
    assert first.label == second.label == label.strip()
    assert len(first.points) == 8 and not second.points
    assert first.points == pytest.approx([n * (480 if i % 2 else 640) / 1000 for i, n in enumerate(numbers)])
    assert first.corners == pytest.approx(
        (min(first.points[::2]), min(first.points[1::2]), max(first.points[::2]), max(first.points[1::2]))
    )
    assert "clipped" not in first.flags
    for box, text in ((first, quad), (second, corners)):
        written = as_text(style.render([replace(box, flags=())], [VIEW]))
        tag = "quad" if box.points else "box"
        assert written == (f"<ref>{label}</ref>" if label else "") + f"<{tag}>{text}</{tag}>"


@pytest.mark.parametrize(
    ("answer", "points", "flags", "broken"),
    [
        ("<quad>(1,2),(3,4),(5,6),(7,2000)</quad>", (1, 2, 3, 4, 5, 6, 7, 1000), ("clipped",), ()),
        ("<quad>(1,2),(3,4),(5,6),(7,8) and", (1, 2, 3, 4, 5, 6, 7, 8), ("unclosed",), ()),
        ("<quad>(1,2),(3,4)</quad>", None, (), ("(1,2),(3,4)",)),
        ("<box>(1,2),(3,4),(5,6),(7,8)</box>", None, (), ("(1,2),(3,4),(5,6),(7,8)",)),
        ("<quad>(1,2),(3,4),(5,6),(7,8)</box>", (1, 2, 3, 4, 5, 6, 7, 8), ("unclosed",), ()),
    ],
)
def test_quads_that_a_model_garbles(answer, points, flags, broken):
    made = processor()
    batch = made.process([user({"type": "image", "image": Image.new("RGB", (1000, 1000))}, "?")])
    found = made.read(answer, batch)
    assert found.broken == broken
    assert [(b.points, b.flags) for b in found.boxes] == ([] if points is None else [(points, flags)])


def test_a_quad_without_a_picture_stays_words():
    made = processor()
    found = made.read("<quad>(1,2),(3,4),(5,6),(7,8)</quad>", made.process([user("?")]))
    assert found.parts == ("(1,2),(3,4),(5,6),(7,8)",)
    assert found.boxes[0].flags == ("no_image",)


def test_pixels_drop_alpha_and_keep_turns():
    made = processor()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    clear, opaque = Image.fromarray(pixels, "RGBA"), Image.fromarray(pixels[:, :, :3].copy())
    one, two = (made.process([user({"type": "image", "image": p})]).patches for p in (clear, opaque))
    assert np.array_equal(one, two)
    turned = opaque.copy()
    turned.getexif()[0x0112] = 6
    three = made.process([user({"type": "image", "image": turned})])
    assert three.media[0].view.original == (20, 30)
    assert np.array_equal(
        three.patches,
        made.process([user({"type": "image", "image": opaque.transpose(Image.Transpose.ROTATE_270)})]).patches,
    )
