"""DeepSeek-VL2's boxes: written, read again, streamed, damaged."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.box import Box, ImageView, Space
from foveal.core.errors import InputError
from foveal.processing.det_boxes import DetBoxes
from foveal.processing.grounding import parse
from foveal.processing.segments import SpecialSegment, TextSegment, as_text

STYLE = DetBoxes()
VIEW = ImageView(original=(640, 480), processed=(88, 66))
LABELS = st.text(st.sampled_from("abc déf[1,2]<|det|>猫"), max_size=12).map(str.strip)
NUMBERS = st.integers(0, 999)


@st.composite
def boxes(draw):
    x1, x2 = sorted((draw(NUMBERS), draw(NUMBERS)))
    y1, y2 = sorted((draw(NUMBERS), draw(NUMBERS)))
    return Box(label=draw(LABELS), corners=(x1, y1, x2, y2), space=Space.RELATIVE_999)


def answer(*pieces):
    """Strings are text; those of tags are special."""
    return [SpecialSegment(name=p) if p in STYLE.specials else TextSegment(text=p) for p in pieces]


def read(*pieces, view=VIEW):
    return parse(answer(*pieces), STYLE, view, 0)


def test_the_published_form():
    dog = Box(label="dog", corners=(12, 34, 560, 789), space=Space.RELATIVE_999)
    other = Box(label="dog", corners=(0, 0, 999, 999), space=Space.RELATIVE_999)
    assert as_text(STYLE.render([dog], [VIEW])) == "<|ref|>dog<|/ref|><|det|>[[12, 34, 560, 789]]<|/det|>"
    assert as_text(STYLE.render([dog, other], [VIEW])) == (
        "<|ref|>dog<|/ref|><|det|>[[12, 34, 560, 789], [0, 0, 999, 999]]<|/det|>"
    )


def test_pixels_of_the_original_count_whatever_was_seen():
    found = read("<|ref|>", "dog", "<|/ref|>", "<|det|>", "[[0, 0, 999, 333]]", "<|/det|>")
    assert found.boxes[0].corners == pytest.approx((0, 0, 640, 160))
    assert found.boxes[0].space is Space.ORIGINAL_PX
    assert found.text == "dog"
    assert found.parts == found.boxes


@given(st.lists(boxes(), max_size=6))
@settings(max_examples=40)
def test_boxes_come_back(written):
    segments = STYLE.render(written, [VIEW])
    assert all(isinstance(s, TextSegment) or s.name in STYLE.specials for s in segments)
    found = parse(segments, STYLE, VIEW, 0)
    assert len(found.boxes) == len(written)
    assert not found.broken
    for ours, box in zip(found.boxes, written, strict=True):
        assert ours.to(Space.RELATIVE_999, VIEW).corners == pytest.approx(box.corners, abs=1e-9)
        assert ours.flags in ((), ("empty",))
    again = STYLE.render(found.boxes, [VIEW])
    labelled = [b.label for b in written]
    if all(labelled):  # a box without a label takes that of the box before it
        assert [b.label for b in found.boxes] == labelled
        assert as_text(again) == as_text(segments)


@given(st.lists(boxes(), min_size=1, max_size=3), st.data())
@settings(max_examples=40)
def test_pieces_are_the_whole(written, data):
    segments = [TextSegment(text="Here: "), *STYLE.render(written, [VIEW]), TextSegment(text=" done")]
    whole = parse(segments, STYLE, VIEW, 0)
    reader, shown = STYLE.reader(VIEW, 0), ""
    for segment in segments:
        pieces = [segment]
        if isinstance(segment, TextSegment) and len(segment.text) > 1:
            cut = data.draw(st.integers(1, len(segment.text) - 1))
            pieces = [TextSegment(text=segment.text[:cut]), TextSegment(text=segment.text[cut:])]
        for piece in pieces:
            reader.take(piece)
            text = "".join(reader.text)
            assert text.startswith(shown), "what was said stays"
            shown = text
    found = reader.finish()
    assert (found.text, found.boxes, found.broken) == (whole.text, whole.boxes, whole.broken)
    assert found.text == whole.text


@pytest.mark.parametrize(
    ("content", "corners", "left"),
    [
        ("[[1, 2, 3, 4]]", [(1, 2, 3, 4)], ""),
        (" [ [1,2 ,3,4] , [5,6,7,8] ] ", [(1, 2, 3, 4), (5, 6, 7, 8)], ""),
        ("[1, 2, 3, 4]", [(1, 2, 3, 4)], ""),
        ("[[1, 2, 3, 4], [5, 6, 7", [(1, 2, 3, 4)], " [5, 6, 7"),
        ("[[1, 2, 3]]", [], "[[1, 2, 3]]"),
        ("none", [], "none"),
        ("", [], ""),
        ("[[1, 2, 3, 4]] and more", [(1, 2, 3, 4)], "and more"),
    ],
)
def test_lists_of_every_quality(content, corners, left):
    found = read("<|det|>", content, "<|/det|>")
    assert [b.to(Space.RELATIVE_999, VIEW).corners for b in found.boxes] == [pytest.approx(c) for c in corners]
    assert "".join(found.broken).strip() == left.strip()
    assert found.text.strip() == left.strip(), "what is no box stays words"


def test_corners_are_mended():
    (box,) = read("<|det|>", "[[500, 10, 20, 2000]]", "<|/det|>").boxes
    assert set(box.flags) == {"swapped", "clipped"}
    assert box.to(Space.RELATIVE_999, VIEW).corners == pytest.approx((20, 10, 500, 999))


def test_an_answer_that_breaks_off():
    found = read("<|ref|>", "dog", "<|/ref|>", "<|det|>", "[[1, 2, 3, 4], [5, 6")
    assert [b.flags for b in found.boxes] == [("unclosed",)]
    assert found.boxes[0].label == "dog"
    assert found.text.startswith("dog")
    assert read("<|det|>", "[[1, 2", "<|ref|>", "x", "<|/ref|>").broken == ("[[1, 2",)


def test_without_an_image_numbers_stay_words():
    found = read("<|ref|>", "dog", "<|/ref|>", "<|det|>", "[[1, 2, 3, 4]]", "<|/det|>", view=None)
    assert found.boxes[0].flags == ("no_image",)
    assert found.parts == ("dog", "[[1, 2, 3, 4]]")


def test_boxes_beyond_the_edge_and_of_no_image_are_refused():
    with pytest.raises(InputError, match="passes the edge"):
        STYLE.render([Box(label="x", corners=(0, 0, 700, 9), space=Space.ORIGINAL_PX)], [VIEW])
    with pytest.raises(InputError, match="lies in image 1"):
        STYLE.render([Box(label="x", corners=(0, 0, 7, 9), space=Space.ORIGINAL_PX, image=1)], [VIEW])
