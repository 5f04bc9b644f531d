import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveal.core.box import Box, ImageView, Space
from foveal.core.errors import InputError
from foveal.processing import grounding
from foveal.processing.grounding import TaggedBoxes
from foveal.processing.segments import SpecialSegment, TextSegment, as_text
from foveal.processing.tokens import Tokenizer
from tests.helpers.tiny_tokenizer import FOLDER

TINY = Tokenizer.from_file(FOLDER / "tokenizer.json")
STYLE = TaggedBoxes()
VIEW = ImageView(original=(500, 200), processed=(504, 196))
REF, END_REF, BOX, END_BOX = STYLE.specials
SIZE = st.integers(1, 8000)
SHARE = st.floats(0, 1)


def parse(text, view=VIEW, image=0):
    return grounding.parse(TINY.split_answer(text), STYLE, view, image)


def there_and_back(size, shares, space, label):
    """The largest error, in units of the model's grid, of a box that the model is shown and says again."""
    view = ImageView(original=size, processed=(max(28, size[0] // 28 * 28), max(28, size[1] // 28 * 28)))
    (x1, x2), (y1, y2) = sorted(shares[:2]), sorted(shares[2:])
    width, height = view.extent(space)
    box = Box(label=label, corners=(x1 * width, y1 * height, x2 * width, y2 * height), space=space)
    (back,) = grounding.parse(STYLE.render([box], [view]), STYLE, view, 0).boxes
    assert back.label == label
    assert back.space is Space.ORIGINAL_PX
    assert set(back.flags) <= {"empty"}
    assert back.corners[2] >= back.corners[0] >= 0 and back.corners[3] >= back.corners[1] >= 0
    assert back.corners[2] <= size[0] + 1e-6 and back.corners[3] <= size[1] + 1e-6
    sent, received = box.to(Space.RELATIVE_1000, view).corners, back.to(Space.RELATIVE_1000, view).corners
    return max(abs(a - b) for a, b in zip(sent, received, strict=True))


def test_ten_thousand_boxes_come_back_within_one_unit():
    rng = np.random.default_rng(0)
    sizes, shares = rng.integers(1, 8000, (10_000, 2)).tolist(), rng.random((10_000, 4)).tolist()
    spaces, labels = list(Space), ["", "cat", "猫 a"]
    worst = max(
        there_and_back(tuple(size), share, spaces[i % 4], labels[i % 3])
        for i, (size, share) in enumerate(zip(sizes, shares, strict=True))
    )
    assert worst <= 0.5 + 1e-6  # whole units are written, so half of one is the worst that there can be


@given(st.tuples(SIZE, SIZE), st.tuples(SHARE, SHARE, SHARE, SHARE), st.sampled_from(list(Space)))
@example((1, 1), (0.0, 1.0, 0.0, 1.0), Space.ORIGINAL_PX)
@settings(max_examples=200)
def test_odd_boxes_come_back_within_one_unit(size, shares, space):
    assert there_and_back(size, shares, space, "cat") <= 0.5 + 1e-6


@given(st.text(st.sampled_from(f"(),0123456789. -ab{chr(0xFF0C)}"), max_size=40), st.data())
@settings(max_examples=500)
def test_no_answer_makes_parsing_fail_or_lose_words(noise, data):
    tags = data.draw(
        st.lists(st.sampled_from([REF, END_REF, BOX, END_BOX, "<|im_end|>", noise, "cat", "(1,2),(3,4)"]), max_size=12)
    )
    found = parse("".join(tags))
    for box in found.boxes:
        left, top, right, bottom = box.corners
        assert 0 <= left <= right <= 500 and 0 <= top <= bottom <= 200
    assert found.text.count("cat") == tags.count("cat")
    assert not any(name in found.text for name in STYLE.specials)


@pytest.mark.parametrize(
    ("answer", "text", "boxes"),
    [
        (
            f"{REF}the cat{END_REF}{BOX}(100,500),(200,1000){END_BOX} sleeps.",
            "the cat sleeps.",
            [("the cat", (50, 100, 100, 200), ())],
        ),
        (f"{BOX}(0,0),(1000,1000){END_BOX}", "", [("", (0, 0, 500, 200), ())]),
        (
            f"{REF}cat{END_REF}{BOX}(0,0),(100,500){END_BOX}{BOX}(0,500),(100,1000){END_BOX}",
            "cat",
            [("cat", (0, 0, 50, 100), ()), ("cat", (0, 100, 50, 200), ())],
        ),
        (f"{REF}cat{END_REF} and {BOX}(0,0),(100,500){END_BOX}", "cat and ", [("", (0, 0, 50, 100), ())]),
        (
            f"{REF} cat {END_REF}, \n{BOX} ( 0 , 0 ) , ( 100 , 500 ) {END_BOX}",
            " cat , \n",
            [("cat", (0, 0, 50, 100), ())],
        ),
        (f"{BOX}(200,1000),(100,500){END_BOX}", "", [("", (50, 100, 100, 200), ("swapped",))]),
        (f"{BOX}(-10,0),(1200.5,500){END_BOX}", "", [("", (0, 0, 500, 100), ("clipped",))]),
        (f"{BOX}(100,0),(100,500){END_BOX}", "", [("", (50, 0, 50, 100), ("empty",))]),
        (f"{REF}cat{END_REF}{BOX}(0,0),(100,500) it is", "cat it is", [("cat", (0, 0, 50, 100), ("unclosed",))]),
        (f"{REF}cat{BOX}(0,0),(100,500){END_BOX}", "cat", [("cat", (0, 0, 50, 100), ())]),
        (
            f"{BOX}(0,0),(100,500){BOX}(0,0),(200,500){END_BOX}",
            "",
            [("", (0, 0, 50, 100), ("unclosed",)), ("", (0, 0, 100, 100), ())],
        ),
        (f"{END_BOX}{END_REF}a<|im_end|>", "a", []),
    ],
)
def test_answers(answer, text, boxes):
    found = parse(answer, image=3)
    assert found.text == text
    assert [(b.label, b.corners, b.flags) for b in found.boxes] == boxes
    assert all(b.image == 3 and b.space is Space.ORIGINAL_PX for b in found.boxes)
    assert not found.broken


@pytest.mark.parametrize(
    "content", ["(1,2)", "(1,2),(3", "1,2,3,4", "(1,2),(3,x)", "(1,2),(3,4),(5,6)", "(1234567,2),(3,4)", "cat"]
)
def test_what_is_no_box_is_kept_and_named(content):
    found = parse(f"a {BOX}{content}{END_BOX} b")
    assert found.boxes == ()
    assert found.broken == (content,)
    assert found.text == f"a {content} b"


def test_a_cut_answer_keeps_its_half_box_in_view():
    found = parse(f"{REF}cat{END_REF}{BOX}(12,3")
    assert (found.text, found.boxes, found.broken) == ("cat(12,3", (), ("(12,3",))


def test_without_an_image_boxes_stay_in_the_models_units():
    (box,) = parse(f"{BOX}(1,2),(3,4000){END_BOX}", view=None).boxes
    assert box.corners == (1, 2, 3, 1000)
    assert box.space is Space.RELATIVE_1000
    assert box.flags == ("clipped", "no_image")


def test_text_that_spells_a_tag_is_no_tag():
    ids = TINY.encode_text(f"{BOX}(1,2),(3,4){END_BOX}")
    found = grounding.parse(TINY.decode_segments(ids), STYLE, VIEW, 0)
    assert found.boxes == ()
    assert found.text == f"{BOX}(1,2),(3,4){END_BOX}"


def test_one_label_for_several_boxes_and_none_for_none():
    cat, dog, bare = (Box(label=x, corners=(0, 0, 1, 1), space=Space.RELATIVE_1000) for x in ("cat", "dog", ""))
    box = f"{BOX}(0,0),(1,1){END_BOX}"
    text = as_text(STYLE.render([cat, cat, dog, bare], [VIEW]))
    assert text == f"{REF}cat{END_REF}{box}{box}{REF}dog{END_REF}{box}{box}"


def test_a_label_stays_text():
    for name in TINY.special_names:
        box = Box(label=f"{name}x", corners=(0, 0, 1, 1), space=Space.RELATIVE_1000)
        segments = STYLE.render([box], [VIEW])
        assert [s.name for s in segments if isinstance(s, SpecialSegment)] == list(STYLE.specials)
        assert TextSegment(text=f"{name}x") in segments
        found = [i for i in TINY.encode_segments(segments).ids if i in TINY.special_ids]
        assert found == [TINY.special(s) for s in STYLE.specials]


def test_boxes_that_have_no_place_are_refused():
    inside = Box(label="cat", corners=(0, 0, 1, 1), space=Space.ORIGINAL_PX, image=1)
    with pytest.raises(InputError, match="image 1, but the conversation has 1"):
        STYLE.render([inside], [VIEW])
    outside = Box(label="cat", corners=(0, 0, 501, 1), space=Space.ORIGINAL_PX)
    with pytest.raises(InputError, match="passes the edge"):
        STYLE.render([outside], [VIEW])


@pytest.mark.parametrize("piece", [f"{BOX}(", "(1,", " ", "1", f"{REF}a", "(((((", f"{BOX}(1,2),(3,4)"])
def test_long_answers_take_linear_time(piece):
    def seconds(count):
        text = BOX + piece * count
        began = time.process_time()
        parse(text)
        return time.process_time() - began

    seconds(100)
    assert seconds(10_000) < 15  # quadratic work on this length takes minutes
