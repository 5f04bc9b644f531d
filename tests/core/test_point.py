import pytest

from foveal.core.box import ImageView, Point, Space

VIEW = ImageView(original=(500, 200), processed=(504, 196))


def test_points_go_from_space_to_space():
    point = Point(label="ear", place=(504, 98), space=Space.PROCESSED_PX)
    assert point.to(Space.ORIGINAL_PX, VIEW).place == pytest.approx((500, 100))
    assert point.to(Space.RELATIVE_1000, VIEW).place == pytest.approx((1000, 500))
    assert point.to(Space.PROCESSED_PX, VIEW) is point


def test_points_are_clipped_and_flagged():
    assert Point.mended("a", (3.0, 4.0), Space.ORIGINAL_PX, VIEW, 2) == Point(
        label="a", place=(3, 4), space=Space.ORIGINAL_PX, image=2
    )
    assert Point.mended("a", (-3.0, 400.0), Space.ORIGINAL_PX, VIEW) == Point(
        label="a", place=(0, 200), space=Space.ORIGINAL_PX, flags=("clipped",)
    )
