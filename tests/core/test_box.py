"""Boxes keep their place through every space."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.box import Box, ImageView, Space
from foveal.core.errors import InputError

SIZE = st.tuples(st.integers(1, 9000), st.integers(1, 9000))
NUMBER = st.floats(-3000, 12000, allow_nan=False)


@given(SIZE, SIZE, st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), st.sampled_from(Space), st.sampled_from(Space))
def test_there_and_back(original, processed, corners, space, other):
    view = ImageView(original=original, processed=processed)
    box = Box.mended("x", corners, space, view)
    back = box.to(other, view).to(space, view)
    scale = max(view.extent(space))
    assert all(abs(a - b) <= 1e-9 * scale for a, b in zip(box.corners, back.corners, strict=True))


@given(SIZE, st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), st.sampled_from(Space))
def test_mending_orders_clips_and_says_so(size, corners, space):
    view = ImageView(original=size, processed=size)
    box = Box.mended("x", corners, space, view)
    left, top, right, bottom = box.corners
    width, height = view.extent(space)
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    x1, y1, x2, y2 = corners
    assert ("swapped" in box.flags) == (x1 > x2 or y1 > y2)
    assert ("empty" in box.flags) == (box.area == 0)
    inside = all(0 <= x <= width for x in (x1, x2)) and all(0 <= y <= height for y in (y1, y2))
    assert ("clipped" in box.flags) == (not inside)


def test_wrong_order_is_refused():
    with pytest.raises(InputError, match=r"left > right"):
        Box(label="", corners=(5, 0, 1, 1), space=Space.ORIGINAL_PX)


def test_iou():
    one = Box(label="", corners=(0, 0, 10, 10), space=Space.ORIGINAL_PX)
    half = Box(label="", corners=(5, 0, 15, 10), space=Space.ORIGINAL_PX)
    assert one.iou(one) == 1
    assert one.iou(half) == pytest.approx(50 / 150)
    assert one.iou(Box(label="", corners=(20, 20, 30, 30), space=Space.ORIGINAL_PX)) == 0
    with pytest.raises(InputError, match="convert one"):
        one.iou(Box(label="", corners=(0, 0, 1, 1), space=Space.RELATIVE_1000))


def test_known_conversion():
    view = ImageView(original=(640, 480), processed=(644, 476))
    box = Box(label="dog", corners=(100, 200, 500, 1000), space=Space.RELATIVE_1000)
    assert box.to(Space.ORIGINAL_PX, view).corners == pytest.approx((64, 96, 320, 480))
    assert box.to(Space.PROCESSED_PX, view).corners == pytest.approx((64.4, 95.2, 322, 476))
