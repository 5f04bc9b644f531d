"""Boxes of samples: put into their places anew, and turned with a picture that EXIF turns."""

from collections.abc import Sequence
from dataclasses import replace

from foveal.core.box import Box, Space
from foveal.data.sample import Sample


def replaced_boxes(sample: Sample, boxes: Sequence[Box]) -> Sample:
    """The sample with these boxes in the places of its own."""
    new = iter(boxes)
    messages = tuple(
        {
            "role": m["role"],
            "content": [{"type": "box", "box": next(new)} if p["type"] == "box" else p for p in m["content"]],
        }
        for m in sample.messages
    )
    return replace(sample, messages=messages)


def turned_box(box: Box, turn: int, size: tuple[int, int]) -> Box:
    """A box in pixels of a stored picture of `size`, in pixels of the upright one (EXIF 2.3, orientation)."""
    w, h = size
    values = box.points or box.corners
    places = [_turned(x, y, turn, w, h) for x, y in zip(values[::2], values[1::2], strict=True)]
    xs, ys = [x for x, _ in places], [y for _, y in places]
    points = tuple(v for place in places for v in place) if box.points else ()
    return replace(box, corners=(min(xs), min(ys), max(xs), max(ys)), points=points, space=Space.ORIGINAL_PX)


def _turned(x: float, y: float, turn: int, w: int, h: int) -> tuple[float, float]:
    if turn in (2, 3):
        x = w - x
    if turn in (3, 4):
        y = h - y
    return {5: (y, x), 6: (h - y, x), 7: (h - y, w - x), 8: (y, w - x)}.get(turn, (x, y))
