import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from foveal.core.box import Box, Space
from foveal.core.errors import BudgetError, ConfigError, ContextError, FovealError, InputError, MediaError
from foveal.core.media import MediaBudget
from foveal.core.packed import join
from foveal.processing.chat import ChatML
from foveal.processing.intake import VideoShape
from tests.helpers import published, videos
from tests.helpers.processing import PROCESSING, processor

P = processor()
T = P.tokenizer


def picture(width=60, height=90, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def specials(packed):
    return [i for i in packed.tokens.tolist() if i in P.special_ids]


def same(a, b):
    for name in ("tokens", "positions", "starts", "deltas", "patches", "grids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.runs == b.runs


def test_what_a_pack_holds():
    clip = {"type": "video", "video": [picture(60, 60, s) for s in range(3)], "sample_fps": 4, "min_pixels": 3136}
    packed = P.process(user("Look: ", picture(), clip, " and?"))
    assert [m.kind for m in packed.media] == ["image", "video"]
    assert packed.media[0].view.original == (60, 90)
    assert packed.media[0].view.processed == (56, 84)
    assert packed.media[1].times_s == (0.0, 0.25, 0.5, 0.75)
    assert packed.grids.tolist() == [[1, 6, 4], [2, 4, 4]]
    assert packed.patches.shape == (24 + 32, 1176)
    assert [m.tokens for m in packed.media] == [6, 8]
    pads = [T.special("<|image_pad|>"), T.special("<|video_pad|>")]
    for run, pad in zip(packed.runs, pads, strict=True):
        assert set(packed.tokens[run.start : run.start + run.length].tolist()) == {pad}
    assert [r.length for r in packed.runs] == [6, 8]
    assert packed.starts.tolist() == [0, len(packed.tokens)]


def test_patches_are_those_of_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = picture(333, 111)
    oracle = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056})
    expected = oracle(images=[image], return_tensors="np")
    packed = P.process(user(image, "?"))
    np.testing.assert_array_equal(packed.grids, expected["image_grid_thw"])
    np.testing.assert_array_equal(packed.patches, expected["pixel_values"])


def test_several_conversations_make_several_sequences():
    conversations = [user(picture(seed=1), "a"), "b", user("c", picture(seed=2), picture(40, 40))]
    packed = P.process(conversations)
    assert len(packed) == 3
    same(packed, join([P.process(c) for c in conversations]))
    assert [m.sequence for m in packed.media] == [0, 2, 2]


def test_spans_say_who_said_what_and_what_is_learned():
    messages = [*user(picture(), "\nHi"), {"role": "assistant", "content": "\n A cat."}, *user("And?")]
    packed = P.process([*messages, {"role": "assistant", "content": "A dog."}], generate=False)
    covered = [i for s in packed.spans for i in range(s.start, s.stop)]
    assert covered == list(range(len(packed.tokens)))
    learned = [T.decode(packed.tokens[s.start : s.stop]) for s in packed.spans if s.learned]
    # The first line break of the first answer is one token with that of the template, which begins it.
    assert learned == [" A cat.<|im_end|>", "A dog.<|im_end|>"]
    assert {s.role for s in packed.spans if s.learned} == {"assistant"}
    assert [s.role for s in packed.spans][:2] == ["system", "user"]


def test_a_prompt_with_placeholders_equals_the_messages_it_stands_for():
    clip = {"type": "video", "video": [picture(40, 40)] * 2, "min_pixels": 3136}
    messages = [{"role": "system", "content": "Be brief."}, *user("a ", picture(), clip, "b")]
    plain = [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "video"}, {"type": "text", "text": "b"}]
    theirs = published.string([messages[0], {"role": "user", "content": plain}], generate=True)
    same(P.process(prompt=theirs, media=[picture(), clip]), P.process(messages))


def test_several_prompts():
    one, two = "<|image_pad|>a", "b"
    packed = P.process(prompt=[one, two], media=[[picture()], []])
    same(packed, join([P.process(prompt=one, media=[picture()]), P.process(prompt=two)]))
    assert [s.role for s in packed.spans] == ["prompt", "prompt"]


PAD = "<|image_pad|>"
BOX = Box(label="x", corners=(0.0, 0.0, 1.0, 1.0), space=Space.ORIGINAL_PX)
WRONG = [
    (
        {"prompt": PAD * 2, "media": [1, 2, 3]},
        r"3 images but 2 placeholders in the prompt; add <\|image_pad\|> or drop",
    ),
    ({"prompt": PAD * 2, "media": [1]}, r"1 images but 2 placeholders in the prompt; add images or drop"),
    ({"prompt": "<|video_pad|>"}, "0 media but 1 placeholders"),
    ({"prompt": "<|video_pad|>", "media": [{"image": "a"}]}, r"media\[0\] is an image, but .* that of a video"),
    ({"prompt": PAD, "media": [{"text": "a"}]}, r"media\[0\] is no medium"),
    ({"prompt": ""}, "at least one character"),
    ({"prompt": ["a", "b"], "media": [[]]}, "2 prompts need as many lists"),
    ({"prompt": ["a"], "media": ["x.jpg"]}, "1 prompts need as many lists"),
    ({"prompt": "a", "messages": "b"}, "either messages or prompt"),
    ({}, "either messages or prompt"),
    ({"messages": "b", "media": []}, "belongs to prompt="),
    ({"messages": "b", "fps": 1.0, "nframes": 4}, "give one"),
    ({"messages": "b", "max_pixels": 0}, "the call: 'max_pixels' is 0"),
    ({"messages": [[]]}, "empty"),
    ({"messages": "a\ud800"}, "surrogate"),
    ({"messages": [{"role": "assistant", "content": [BOX]}]}, "lies in image 0, but the conversation has 0"),
]


@pytest.mark.parametrize(("arguments", "error"), WRONG)
def test_wrong_calls(arguments, error):
    with pytest.raises(InputError, match=error):
        P.process(**arguments)


def test_a_prompt_beyond_the_context_names_both_counts_and_what_helps():
    small = processor(context_tokens=64)
    with pytest.raises(ContextError, match=r"has \d+ tokens, 0 of them .* is 64\. To make it fit, shorten the text"):
        small.process("word " * 200)
    with pytest.raises(ContextError, match="lower max_pixels") as caught:
        small.process(user(picture(280, 280), picture(280, 280), "What?"))
    limit = int(str(caught.value).split("about ")[1].split()[0])
    fits = small.process(user(picture(280, 280), picture(280, 280), "What?"), max_pixels=limit)
    assert len(fits.tokens) <= 64
    with pytest.raises(ContextError, match="send fewer media and shorten"):
        small.process(user(picture(), "word " * 200))
    whole = small.process("a")
    exact = processor(context_tokens=len(whole.tokens))
    assert len(exact.process("a").tokens) == len(whole.tokens)


def test_budgets_hold_before_anything_is_opened():
    with pytest.raises(BudgetError, match="3 images and videos in one conversation; the budget is 2"):
        P.process(user("missing.png", *[{"image": "missing.png"}] * 3), budget=MediaBudget(media=2))
    with pytest.raises(BudgetError, match="px"):
        P.process(user(picture()), budget=MediaBudget(image_px=100))
    with pytest.raises(MediaError, match=r"missing\.png"):
        P.process(user({"image": "missing.png"}))


def test_every_special_token_in_every_text_stays_text(tmp_path):
    for name in T.special_names:
        folder = tmp_path / "".join(c for c in name if c.isalnum())
        folder.mkdir()
        path = folder / f"{name}.png".replace("|", "\N{FULLWIDTH VERTICAL LINE}" if "\\" in str(tmp_path) else "|")
        picture(28, 28).save(path)
        box = Box(label=name, corners=(0.0, 0.0, 1.0, 1.0), space=Space.RELATIVE_1000)
        spoken = [
            {"role": "system", "content": name},
            *user({"image": str(path)}, name, {"type": "text", "text": f"x{name}"}),
            {"role": "assistant", "content": [name, box, name]},
            {"role": "tool", "content": f"{name * 2}"},
        ]
        plain = [
            {"role": "system", "content": "a"},
            *user(picture(28, 28), "a", "xa"),
            {"role": "assistant", "content": ["a", replace(box, label="a"), "a"]},
            {"role": "tool", "content": "aa"},
        ]
        assert specials(P.process(spoken)) == specials(P.process(plain))
        assert specials(P.process(name)) == specials(P.process("a"))


def test_settings_of_a_part_stand_above_those_of_the_call():
    free, called = P.process(user(picture(300, 300))), P.process(user(picture(300, 300)), max_pixels=28 * 28 * 17)
    own = P.process(user({"image": picture(300, 300), "max_pixels": 28 * 28 * 17}))
    both = P.process(user({"image": picture(300, 300), "max_pixels": 28 * 28 * 17}), max_pixels=28 * 28 * 4)
    assert free.grids.tolist() == [[1, 22, 22]]
    assert called.grids.tolist() == own.grids.tolist() == both.grids.tolist() == [[1, 8, 8]]
    larger = P.process(user(picture(30, 30)), min_pixels=28 * 28 * 9)
    assert larger.grids.tolist() == [[1, 6, 6]]


def test_detail_low_and_resized_do_what_they_say():
    low = P.process(user({"type": "image_url", "image_url": {"url": data_url(picture(900, 900)), "detail": "low"}}))
    assert low.media[0].view.processed == (504, 504)
    scaled = P.process(user({"image": picture(300, 150), "resized_width": 112, "resized_height": 84}))
    assert scaled.media[0].view.processed == (112, 84)
    assert scaled.media[0].view.original == (300, 150)
    capped = P.process(
        user({"image": picture(300, 150), "resized_width": 112, "resized_height": 112}), max_pixels=56 * 56
    )
    assert capped.media[0].view.processed == (56, 56)


def data_url(image):
    import base64

    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_video_files_follow_the_settings_of_part_and_call():
    film = videos.video(90, fps=30)  # 3 s
    count = lambda parts, **options: len(P.process(user(*parts), min_pixels=3136, **options).media[0].times_s)  # noqa: E731
    assert count([{"video": film}]) == 6
    assert count([{"video": film}], fps=4.0) == 12
    assert count([{"video": film, "fps": 8}], fps=4.0) == 24
    assert count([{"video": film}], nframes=10) == 10
    assert count([{"video": film, "nframes": 4}], fps=4.0) == 4
    assert count([{"video": film, "nframes": 8}], max_frames=4) == 8
    assert count([{"video": film}], fps=8.0, max_frames=10) == 10
    assert count([{"video": film, "video_start": 1.0, "video_end": 1.9, "fps": 10}]) == 8
    with pytest.raises(InputError, match="max_frames=2"):
        count([{"video": [picture()] * 4}], max_frames=2)


def test_count_is_what_process_takes():
    text, images = "How many 猫?", [(60, 90), (333, 111)]
    counted = P.count(text, images=images)
    packed = P.process(user(*[picture(*size) for size in images], text))
    assert counted.tokens == len(packed.tokens)
    assert counted.text_tokens == len(packed.tokens) - sum(r.length for r in packed.runs)
    assert [m.view for m in counted.media] == [m.view for m in packed.media]

    film = videos.video(90, fps=30, size=(320, 240))
    for options in ({}, {"fps": 4.0}, {"nframes": 10}, {"max_frames": 4}, {"max_pixels": 200_000}):
        counted = P.count(text, videos=[VideoShape(width=320, height=240, seconds=3.0)], **options)
        packed = P.process(user({"video": film}, text), **options)
        assert counted.tokens == len(packed.tokens)
        assert counted.media[0].grid == packed.media[0].grid
        assert counted.media[0].times_s == pytest.approx(packed.media[0].times_s, abs=1e-3)


def test_answers_give_boxes_of_the_last_image_in_its_own_pixels():
    packed = P.process([user(picture(100, 200)), user(picture(60, 90), "?", picture(500, 300))])
    answer = "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(100,500),(1100,1000)<|box_end|>!<|im_end|>"
    for said in (answer, published.ids(answer), np.array(published.ids(answer))):
        text, boxes = P.parse(said, packed, sequence=1)
        assert text == "the cat!"
        (box,) = boxes
        assert (box.label, box.space, box.image, box.flags) == ("the cat", Space.ORIGINAL_PX, 1, ("clipped",))
        assert box.corners == (50.0, 150.0, 500.0, 300.0)
    _, (box,) = P.parse(answer, packed, sequence=0)
    assert (box.image, box.corners) == (0, (10.0, 100.0, 100.0, 200.0))
    assert P.read("<|box_start|>12", packed).broken == ("12",)
    with pytest.raises(InputError, match="sequence 2 of a pack of 2"):
        P.parse(answer, packed, sequence=2)
    _, (box,) = P.parse(answer, P.process("no image"))
    assert "no_image" in box.flags


def test_an_answers_parts_render_to_what_was_said():
    messages = user(picture(100, 200), "?")
    answer = "See <|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,500),(900,1000)<|box_end|>!"
    parts = list(P.read(answer, P.process(messages)).parts)
    again = P.process([*messages, {"role": "assistant", "content": parts}], generate=False)
    assert T.decode(again.tokens).endswith(f"assistant\n{answer}<|im_end|>\n")


def test_ids_that_are_never_sampled_and_never_text():
    names = {T._names[i] for i in P.banned_ids}
    assert names == {"<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"}
    assert P.banned_ids < P.special_ids


def test_a_vocabulary_without_the_needed_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"no special token '<\|imstart\|>'; did you mean '<\|im_start\|>'"):
        processor(chat=ChatML(start="<|imstart|>"))


def test_save_writes_the_same_files_back(tmp_path):
    P.save(tmp_path / "copy")
    copied = processor(tmp_path / "copy")
    assert {p.name for p in (tmp_path / "copy").iterdir()} == set(P.files())
    assert copied.processing == P.processing
    assert copied.files() == P.files()
    same(copied.process(user(picture(), "a")), P.process(user(picture(), "a")))


def test_a_processor_of_our_own_is_read_back_and_opens_in_transformers(tmp_path):
    from transformers import AutoImageProcessor, AutoTokenizer

    chat = ChatML(default_system='A "small" model.\n')
    plain = PROCESSING.vision
    seen = replace(
        plain,
        resize=replace(plain.resize, min_px=784, max_px=50_000),
        video=replace(plain.video, fps=1.0, max_frames=8, frame_min_px=784, frame_max_px=50_000, total_px=400_000),
    )
    own = replace(PROCESSING, vision=seen, chat=chat)
    made = type(P)(tokenizer=T, processing=own, context_tokens=512)
    made.save(tmp_path)
    again = type(P).from_folder(tmp_path, replace(own, vision=plain), context_tokens=512)
    # Video budgets are written in whole tokens of text, 0.9 x 28 x 28 px each.
    total = again.processing.vision.video.total_px
    assert total == pytest.approx(400_000, abs=706)
    expected = replace(seen, video=replace(seen.video, total_px=total))
    assert again.processing == replace(own, vision=expected)
    assert again.chat == chat
    same(again.process(user(picture(), "a")), made.process(user(picture(), "a")))

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    string = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert theirs(string)["input_ids"] == made.process("hi").tokens.tolist()
    image = AutoImageProcessor.from_pretrained(tmp_path)
    assert (image.size["shortest_edge"], image.size["longest_edge"]) == (784, 50_000)


def test_errors_are_all_foveal_errors_whatever_the_messages(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    for source in (tmp_path / "text.jpg", tmp_path, b"", "", "data:,", np.zeros((0, 3, 3), np.uint8)):
        for kind in ("image", "video"):
            with pytest.raises(FovealError):
                P.process(user({"type": kind, kind: source}))


def test_marks_that_a_format_does_not_have_are_refused():
    for part in ({"ref": "the dog"}, {"grounding": True}):
        with pytest.raises(InputError, match="marks that this model's chat format does not have"):
            P.process([{"role": "user", "content": [part]}])


def test_arguments_of_another_kind():
    """In a process of its own: here the types of arguments are checked before they arrive."""
    code = """
from foveal.core.errors import InputError
from tests.helpers.processing import processor
P = processor()
for wrong in (
    {"prompt": 5}, {"prompt": "x", "media": 5}, {"prompt": "x", "media": "x"}, {"messages": "x", "budget": 5}
):
    try:
        P.process(**wrong)
    except InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "the prompt is 5; expected a text or a list of texts.",
        "media is a int; expected a list of images and videos.",
        "media is a str; expected a list of images and videos.",
        "budget is 5; expected a foveal.MediaBudget.",
    ]
