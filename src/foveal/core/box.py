"""One box type from data set to answer: `Box`, and the spaces its corners can be in.

A model speaks of an image that the processor has resized; a user thinks of the file they sent.
`ImageView` holds both sizes, and `Box.to` converts between the spaces, so no other code does.
"""

from dataclasses import dataclass, replace
from enum import Enum

from foveal.core.errors import InputError


class Space(Enum):
    """What the numbers of a box count."""

    RELATIVE_1000 = "relative_1000"
    """Thousandths of the image's width and height (Qwen-VL, Qwen2-VL, Qwen3-VL)."""
    RELATIVE_999 = "relative_999"
    """0 to 999, where 999 is the far edge (DeepSeek-VL2's `<|det|>`)."""
    PROCESSED_PX = "processed_px"
    """Pixels of the resized image that the model saw (Qwen2.5-VL)."""
    ORIGINAL_PX = "original_px"
    """Pixels of the user's image, after its EXIF orientation was applied."""


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """An image as its user knows it and as the model saw it; sizes are (width, height) in pixels."""

    original: tuple[int, int]
    processed: tuple[int, int]

    def extent(self, space: Space) -> tuple[float, float]:
        """The far edge of the image in units of `space`, as (x, y)."""
        if space is Space.ORIGINAL_PX:
            return float(self.original[0]), float(self.original[1])
        if space is Space.PROCESSED_PX:
            return float(self.processed[0]), float(self.processed[1])
        far = 1000.0 if space is Space.RELATIVE_1000 else 999.0
        return far, far


@dataclass(frozen=True, kw_only=True)
class Box:
    """A labelled rectangle. Corners are (left, top, right, bottom) in units of `space`.

    Attributes:
        label: what stands in the box, as the model or data set words it; may be empty.
        corners: left <= right and top <= bottom.
        space: the units of `corners`.
        image: index of the image among the media of the conversation.
        flags: what had to be mended when the box was read: "clipped" (it passed the image's edge),
            "swapped" (its corners came in the wrong order), "empty" (it has no area).
        points: for a quadrilateral, its four corner points x1, y1, ... x4, y4 in the order of the model or data set;
            `corners` is then its bounding box. Empty for a rectangle.
    """

    label: str
    corners: tuple[float, float, float, float]
    space: Space
    image: int = 0
    flags: tuple[str, ...] = ()
    points: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        left, top, right, bottom = self.corners
        if len(self.points) not in (0, 8):
            raise InputError(f"box {self.label!r} has {len(self.points)} numbers for its points; four points take 8.")
        if not (left <= right and top <= bottom):
            raise InputError(
                f"box {self.corners} has left > right or top > bottom; use Box.mended() for corners of unknown order."
            )

    @classmethod
    def mended(
        cls,
        label: str,
        corners: tuple[float, float, float, float],
        space: Space,
        view: ImageView,
        image: int = 0,
    ) -> "Box":
        """A box from numbers of unknown quality: corners put in order and clipped, flagged where that was needed."""
        x1, y1, x2, y2 = corners
        flags = []
        if x1 > x2 or y1 > y2:
            flags.append("swapped")
        width, height = view.extent(space)
        left, right = (min(max(v, 0.0), width) for v in (min(x1, x2), max(x1, x2)))
        top, bottom = (min(max(v, 0.0), height) for v in (min(y1, y2), max(y1, y2)))
        if (left, top, right, bottom) != (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)):
            flags.append("clipped")
        if left == right or top == bottom:
            flags.append("empty")
        return cls(label=label, corners=(left, top, right, bottom), space=space, image=image, flags=tuple(flags))

    @classmethod
    def quadrilateral(
        cls, label: str, points: tuple[float, ...], space: Space, view: ImageView, image: int = 0
    ) -> "Box":
        """A region with four corner points x1, y1, ... x4, y4 of unknown quality: clipped to the image, and flagged."""
        far = view.extent(space)
        inside = tuple(min(max(v, 0.0), far[i % 2]) for i, v in enumerate(points))
        corners = min(inside[::2]), min(inside[1::2]), max(inside[::2]), max(inside[1::2])
        box = cls.mended(label, corners, space, view, image)
        clipped = ("clipped",) if inside != tuple(points) else ()
        return replace(box, points=inside, flags=clipped + box.flags)

    def to(self, space: Space, view: ImageView) -> "Box":
        """The same box in units of `space`; exact up to floating point, no rounding."""
        if space is self.space:
            return self
        (w, h), (to_w, to_h) = view.extent(self.space), view.extent(space)
        x, y = to_w / w, to_h / h
        left, top, right, bottom = self.corners
        points = tuple(v * (y if i % 2 else x) for i, v in enumerate(self.points))
        return replace(self, corners=(left * x, top * y, right * x, bottom * y), points=points, space=space)

    @property
    def area(self) -> float:
        left, top, right, bottom = self.corners
        return (right - left) * (bottom - top)

    def iou(self, other: "Box") -> float:
        """Intersection over union with a box of the same space; 0 when both are empty."""
        if other.space is not self.space:
            raise InputError(f"boxes are in {self.space.value} and {other.space.value}; convert one with Box.to().")
        a, b = self.corners, other.corners
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        union = self.area + other.area - width * height
        return width * height / union if union > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """A labelled place in an image: (x, y) in units of `space`. Attributes as those of `Box`."""

    label: str
    place: tuple[float, float]
    space: Space
    image: int = 0
    flags: tuple[str, ...] = ()

    @classmethod
    def mended(cls, label: str, place: tuple[float, float], space: Space, view: ImageView, image: int = 0) -> "Point":
        """A point from numbers of unknown quality, clipped to the image and flagged where that was needed."""
        x, y = (min(max(v, 0.0), far) for v, far in zip(place, view.extent(space), strict=True))
        return cls(label=label, place=(x, y), space=space, image=image, flags=() if (x, y) == place else ("clipped",))

    def to(self, space: Space, view: ImageView) -> "Point":
        """The same point in units of `space`; exact up to floating point, no rounding."""
        if space is self.space:
            return self
        (w, h), (to_w, to_h) = view.extent(self.space), view.extent(space)
        return replace(self, place=(self.place[0] * (to_w / w), self.place[1] * (to_h / h)), space=space)
