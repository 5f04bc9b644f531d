"""Boxes in a model's words: how each family writes a region, and how it is read from an answer.

A `BoxStyle` turns `Box` records into segments (for prompts and training) and segments of an answer back into
boxes in the pixels of the user's own image. Reading never fails: what a model garbles is flagged or kept.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol, runtime_checkable

from foveal.core.box import Box, ImageView, Point, Space
from foveal.core.errors import InputError
from foveal.processing.segments import Segment, SpecialSegment, TextSegment


@dataclass(frozen=True, kw_only=True)
class Grounded:
    """An answer taken apart.

    Attributes:
        text: the words, labels included, without tags and without the coordinates of `boxes`.
        boxes: in the order of the answer, in `Space.ORIGINAL_PX` of their image. Beside the flags of
            `Box.mended`, "unclosed" says that the end was missing, "malformed" that the syntax was damaged. If the
            conversation has no image, boxes keep the model's own space and carry the flag "no_image".
        points: as `boxes`, for families that point.
        broken: what stood in the place of a box and was none; it is also left in `text`.
        parts: words and boxes in order, as the content of an assistant message that says the same again.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    broken: tuple[str, ...] = ()
    parts: tuple[str | Box, ...] = ()


@runtime_checkable
class BoxStyle(Protocol):
    """How one family writes boxes."""

    @property
    def specials(self) -> tuple[str, ...]:
        """Special tokens that it needs in the vocabulary."""
        ...

    def render(self, boxes: Sequence[Box], views: Sequence[ImageView]) -> list[Segment]:
        """Neighbouring boxes of a message as segments; `views` are the media of the conversation."""
        ...

    def reader(self, view: ImageView | None, image: int) -> "AnswerReader":
        """A reader of one answer whose boxes refer to medium number `image`, seen as `view`."""
        ...


@runtime_checkable
class AnswerReader(Protocol):
    """Reads one answer as it comes."""

    text: list[str]
    """Words so far. Once here they stay: nothing that may turn out to be coordinates is among them."""

    def take(self, segment: Segment) -> None:
        """The next segment, or the next piece of a text segment."""
        ...

    def finish(self) -> Grounded:
        """What was read, after the last segment."""
        ...


def parse(answer: Sequence[Segment], style: BoxStyle, view: ImageView | None, image: int) -> Grounded:
    """Reads a whole answer whose boxes refer to medium number `image`, seen as `view`."""
    reader = style.reader(view, image)
    for segment in answer:
        reader.take(segment)
    return reader.finish()


# Four numbers of at most six digits before the point: bounded repeats, so matching takes linear time.
_NUMBER = r"\s{0,9}([+-]?\d{1,6}(?:\.\d{1,9})?)\s{0,9}"
_POINT = rf"\s{{0,9}}\({_NUMBER},{_NUMBER}\)"
_NEXT = rf"\s{{0,9}},?{_POINT}"
_CORNERS = re.compile(_POINT + _NEXT, re.ASCII)
_POINTS = re.compile(_POINT + 3 * _NEXT, re.ASCII)


@dataclass(frozen=True, kw_only=True)
class TaggedBoxes:
    """Qwen2-VL's style: `<|object_ref_start|>label<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`.

    Whole numbers in 0..1000 of width and height. One label may have several boxes in a row. Source: Qwen2-VL
    paper, section 2.2.1 (visual grounding); the form is Qwen-VL's with other tokens.

    Attributes:
        quad: tokens around a region with four corner points, `(x1,y1),(x2,y2),(x3,y3),(x4,y4)` (Qwen-VL, text
            regions); None where a family has none, and such a region is written as its bounding box.
    """

    ref: tuple[str, str] = ("<|object_ref_start|>", "<|object_ref_end|>")
    box: tuple[str, str] = ("<|box_start|>", "<|box_end|>")
    space: Space = Space.RELATIVE_1000
    quad: tuple[str, str] | None = None

    @property
    def specials(self) -> tuple[str, ...]:
        return (*self.ref, *self.box, *(self.quad or ()))

    def render(self, boxes: Sequence[Box], views: Sequence[ImageView]) -> list[Segment]:
        """Raises `InputError` for a box of an image that is not there, or one that passes its image's edge."""
        segments: list[Segment] = []
        for label, group in groupby(boxes, key=lambda b: b.label):
            if label:
                segments += [SpecialSegment(name=self.ref[0]), TextSegment(text=label)]
                segments += [SpecialSegment(name=self.ref[1])]
            for box in group:
                start, end = self.quad if self.quad and box.points else self.box
                numbers = self.numbers(box, view_of(box, views))
                written = ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
                segments += [SpecialSegment(name=start), TextSegment(text=written), SpecialSegment(name=end)]
        return segments

    def numbers(self, box: Box, view: ImageView) -> tuple[int, ...]:
        """The corners, or the four points of a quadrilateral, as the model writes them."""
        return (whole_points if self.quad and box.points else whole_corners)(box, view, self.space)

    def reader(self, view: ImageView | None, image: int) -> "TagReader":
        return TagReader(self, view, image)


class TagReader:
    """One pass over an answer; every segment is looked at once."""

    def __init__(self, style: TaggedBoxes, view: ImageView | None, image: int) -> None:
        self.style, self.view, self.image = style, view, image
        self.text: list[str] = []
        self.boxes: list[Box] = []
        self.broken: list[str] = []
        self.parts: list[str | Box] = []
        self.label = ""
        self.unboxed = ""  # the label while no box has come for it; it is not among `parts` yet
        self.in_label = False
        self.inside: list[str] | None = None  # texts since the opening box tag
        self.pattern, self.end = _CORNERS, style.box[1]  # what is expected there, and the closing tag

    def take(self, segment: Segment) -> None:
        """Reads one more segment of the answer."""
        if isinstance(segment, TextSegment):
            if self.inside is not None:
                self.inside.append(segment.text)
                return
            if self.in_label:
                self.text.append(segment.text)
                self.label += segment.text
                self.unboxed += segment.text
            else:
                self._say(segment.text)
        elif isinstance(segment, SpecialSegment):
            label_start, box_start, quad = self.style.ref[0], self.style.box[0], self.style.quad
            if self.inside is not None:
                self.close_box(closed=segment.name == self.end)
            self.in_label = segment.name == label_start
            if self.in_label:
                self._drop_label()
            elif segment.name == box_start:
                self.inside, self.pattern, self.end = [], _CORNERS, self.style.box[1]
            elif quad and segment.name == quad[0]:
                self.inside, self.pattern, self.end = [], _POINTS, quad[1]

    def finish(self) -> Grounded:
        self.close_box(closed=False)
        self._drop_label()
        return Grounded(
            text="".join(self.text), boxes=tuple(self.boxes), broken=tuple(self.broken), parts=tuple(self.parts)
        )

    def _say(self, words: str) -> None:
        """Words outside labels. More than a separator means that the label is not that of a later box."""
        self.text.append(words)
        if words.strip(" ,\n"):
            self._drop_label()
        self.parts.append(words)

    def _drop_label(self) -> None:
        if self.unboxed:
            self.parts.append(self.unboxed)
        self.label = self.unboxed = ""

    def close_box(self, *, closed: bool) -> None:
        """Reads what stands between box tags. Without a closing tag, words may follow the numbers."""
        if self.inside is None:
            return
        content, self.inside = "".join(self.inside), None
        found = self.pattern.fullmatch(content.rstrip()) if closed else self.pattern.match(content)
        if found is None:
            if content:
                self.broken.append(content)
                self._say(content)
            return
        self._add(tuple(float(n) for n in found.groups()), () if closed else ("unclosed",))
        if not closed and content[found.end() :]:
            self._say(content[found.end() :])

    def _add(self, numbers: tuple[float, ...], flags: tuple[str, ...]) -> None:
        space, view = self.style.space, self.view
        if view is None:
            # Relative units have the same extent for every image, so that order and edges can be mended still.
            view, flags = ImageView(original=(1, 1), processed=(1, 1)), (*flags, "no_image")
        label = self.label.strip()
        if len(numbers) == 8:
            box = Box.quadrilateral(label, numbers, space, view, self.image)
        else:
            x1, y1, x2, y2 = numbers
            box = Box.mended(label, (x1, y1, x2, y2), space, view, self.image)
        if self.view is not None:
            box = box.to(Space.ORIGINAL_PX, view)
        box = replace(box, flags=box.flags + flags)
        self.boxes.append(box)
        if self.view is None:
            # Without an image the box cannot be said again as one; its numbers stay as words.
            self._drop_label()
            pairs = zip(numbers[::2], numbers[1::2], strict=True)
            self.parts.append(",".join(f"({x:g},{y:g})" for x, y in pairs))
        else:
            self.unboxed = ""
            self.parts.append(box)


def view_of(box: Box, views: Sequence[ImageView]) -> ImageView:
    """The view of the medium that `box` lies in; `InputError` if the conversation has no such medium."""
    if not 0 <= box.image < len(views):
        raise InputError(
            f"box {box.label!r} lies in image {box.image}, but the conversation has {len(views)}; "
            "images and videos count from 0 in the order of the messages."
        )
    return views[box.image]


def whole_corners(box: Box, view: ImageView, space: Space) -> tuple[int, int, int, int]:
    """The corners in nearest whole units of `space`, halves up; `InputError` for a box that passes the edge."""
    x1, y1, x2, y2 = _whole(box.to(space, view).corners, box, view, space)
    return x1, y1, x2, y2


def whole_points(box: Box, view: ImageView, space: Space) -> tuple[int, ...]:
    """As `whole_corners`, the points of a quadrilateral."""
    return _whole(box.to(space, view).points, box, view, space)


def _whole(values: Sequence[int | float], box: Box, view: ImageView, space: Space) -> tuple[int, ...]:
    width, height = view.extent(space)
    slack = 1e-6 * max(width, height)
    if min(values) < -slack or max(values[0::2]) > width + slack or max(values[1::2]) > height + slack:
        far = view.extent(box.space)
        raise InputError(
            f"box {box.label!r} {box.corners} passes the edge of its image, which ends at {far} in "
            f"{box.space.value}; clip it with Box.mended() or correct its space."
        )
    return tuple(int(max(v, 0.0) + 0.5) for v in values)
