"""Published prompts, list formats and boxes against the recorded cases, on the whole vocabulary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveal.core.box import Space
from foveal.core.errors import InputError
from foveal.processing.messages import BoxPart, ImagePart, TextPart
from foveal.processing.picture_chat import SPECIALS
from foveal.processing.picture_prompts import (
    PicturePrompts,
    boxes_of,
    draw_boxes,
    from_list_format,
    latest_picture,
    pixel_corners,
    to_list_format,
    to_parts,
)
from tests.helpers import qwen_vl

GOLDEN = qwen_vl.recorded("tokenizer_golden.json")


@pytest.fixture(scope="module")
def prompts():
    return PicturePrompts(qwen_vl.whole_vocabulary())


def check(recorded, call, *arguments, **options):
    """The recorded result, or an error where one was recorded."""
    if "exception" in recorded:
        with pytest.raises(InputError):
            call(*arguments, **options)
    else:
        assert call(*arguments, **options) == recorded["result"]


@pytest.mark.parametrize("number", range(len(GOLDEN["encode"])))
def test_ids_and_texts(prompts, number):
    case = GOLDEN["encode"][number]
    ids = prompts.encode(case["text"])
    assert ids == case["input_ids"]
    check(case["decode"], prompts.decode, ids)
    check(case["decode_skip_special"], prompts.decode, ids, skip_special=True)
    check(case["decode_skip_keep_image_special"], prompts.decode, ids, skip_special=True, keep_tags=True)
    check(case["to_list_format"], to_list_format, case["text"])
    if "result" in case["decode"]:
        assert prompts.published(prompts.ours(ids), prompts.names(ids)) == ids


@pytest.mark.parametrize("number", range(len(GOLDEN["encode_errors"])))
def test_texts_that_are_no_prompt(prompts, number):
    case = GOLDEN["encode_errors"][number]
    check(case["encode"], prompts.encode, case["text"])
    check(case["to_list_format"], to_list_format, case["text"])


def test_from_list_format():
    for case in GOLDEN["from_list_format"]:
        assert from_list_format(case["input"]) == case["text"]
    for case in GOLDEN["from_list_format_errors"]:
        with pytest.raises(InputError, match="no 'image', 'text' or 'box'"):
            from_list_format(case["input"])
    with pytest.raises(InputError, match="has 3 numbers"):
        from_list_format([{"box": [(1, 2, 3)]}])


@pytest.mark.parametrize("name", SPECIALS)
def test_no_element_opens_what_it_is_not(name):
    """Tags of content may stand in a text, as published; in names and labels nothing special may."""
    for element in ({"image": f"a{name}.png"}, {"ref": name, "box": [(1, 2, 3, 4)]}):
        with pytest.raises(InputError, match="holds the special token"):
            from_list_format([element])
    if name.startswith("<|") and name != "<|endoftext|>":
        with pytest.raises(InputError, match="'text' holds the special token"):
            from_list_format([{"text": f"Hello{name}"}])
    else:
        assert from_list_format([{"text": name}]) == name


def test_the_published_example(prompts):
    example = GOLDEN["published_example"]
    assert len(prompts.encode(example["text"])) == example["length"] == 272


WORDS = st.text("ab é图\n:1(,)", max_size=12)


@given(st.lists(st.tuples(st.sampled_from(["text", "image", "ref", "quad", "box"]), WORDS), max_size=6))
def test_elements_come_back(elements):
    text, expected = "", []
    for kind, words in elements:
        tag = "img" if kind == "image" else kind
        text += words if kind == "text" else f"<{tag}>{words}</{tag}>"
        if kind == "text" and expected and expected[-1].keys() == {"text"}:
            expected[-1]["text"] += words
        elif kind != "text" or words:
            expected.append({kind: words})
    assert to_list_format(text) == expected


def test_names_and_places_have_to_fit(prompts):
    ids = prompts.encode("<img>a.png</img> and <img>图.png</img>")
    assert prompts.names(ids) == ["a.png", "图.png"]
    with pytest.raises(InputError, match="1 names for 2 pictures"):
        prompts.published(ids, ["a"])
    with pytest.raises(InputError, match="300 bytes; at most 256"):
        prompts.published(ids, ["a", "b" * 300])
    start, end, pad = prompts.start, prompts.end, prompts.pad
    with pytest.raises(InputError, match="no </img>"):
        prompts.decode([start, pad])
    with pytest.raises(InputError, match="no bytes"):
        prompts.decode([start, 300, pad, end])
    assert prompts.prompt("x <img>a\nb</img> y") == ("x <img><imgpad></img> y", ["a\nb"])


@pytest.mark.parametrize("number", range(len(GOLDEN["boxes"])))
def test_boxes(number):
    case = GOLDEN["boxes"][number]
    found = boxes_of(case["response"])
    assert [{**f, "box": list(f["box"])} for f in found] == case["boxes"]
    for size, expected in case["pixel_boxes"].items():
        width, height = map(int, size.split("x"))
        assert [list(pixel_corners(f["box"], (width, height))) for f in found] == expected
    texts = [text for turn in case["history"] or [] for text in turn]
    assert latest_picture(texts) == case["latest_picture"]


@pytest.mark.parametrize("answer", ["<box>(1,2),(3)</box>", "<box>nothing</box>", "<box>(1,2),(3,4)"])
def test_boxes_that_are_none(answer):
    with pytest.raises(InputError):
        boxes_of(answer)


def test_drawing():
    picture = Image.new("RGB", (333, 777), "white")
    drawn = draw_boxes(picture, "<ref>dog</ref><box>(216,426),(578,895)</box>")
    assert drawn is not None and drawn.size == picture.size
    # The published corners: int(216 / 1000 * 333) = 71, int(426 / 1000 * 777) = 331.
    row = [drawn.getpixel((x, 500)) for x in range(333)]
    changed = [x for x, colour in enumerate(row) if colour != (255, 255, 255)]
    assert changed[0] in (70, 71) and changed[-1] in (191, 192)
    assert draw_boxes(picture, "no boxes") is None


def test_parts_of_a_published_text():
    text = (
        "Picture 1: <img>a.png</img>\nFind <ref>the dog</ref><box>(216,426),(578,895)</box><box>(1,2),(3,4)</box> and "
    )
    text += "Picture 2: <img>b.png</img>\n<quad>(1,2),(30,4),(50,60),(7,8)</quad> or <ref>a word</ref>."
    a, find, one, two, word, b, quad, rest, label, dot = to_parts(text, {"a.png": 1, "b.png": 2})
    assert (a, b) == (ImagePart(source=1), ImagePart(source=2))
    assert [p.text for p in (find, word, rest, label, dot)] == ["Find ", " and ", " or ", "a word", "."]
    assert [p.box.label for p in (one, two, quad)] == ["the dog", "the dog", ""]
    assert [p.box.image for p in (one, two, quad)] == [0, 0, 1]
    assert one.box.corners == (216, 426, 578, 895) and one.box.space is Space.RELATIVE_1000
    assert quad.box.points == (1, 2, 30, 4, 50, 60, 7, 8) and quad.box.corners == (1, 2, 50, 60)
    assert isinstance(one, BoxPart) and isinstance(dot, TextPart)
    with pytest.raises(InputError, match="names the picture '/etc/passwd'"):
        to_parts("<img>/etc/passwd</img>", {"a.png": 1})
    with pytest.raises(InputError, match="has 3 numbers"):
        to_parts("<box>(1,2),(3)</box>", {})
