"""DeepSeek-VL2's boxes: `<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], [x1, y1, x2, y2]]<|/det|>`.

Numbers count 0 to 999 over width and height of the user's picture, whatever tiles the model saw. All boxes of one
label stand in one list.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from foveal.core.box import Box, ImageView, Space
from foveal.processing.grounding import TaggedBoxes, TagReader, view_of, whole_corners
from foveal.processing.segments import Segment, SpecialSegment, TextSegment

# Repeats are bounded, so matching takes linear time.
_NUMBER = r"\s{0,9}([+-]?\d{1,6}(?:\.\d{1,9})?)\s{0,9}"
_OPEN = re.compile(r"\s{0,9}(?:\[(?=\s{0,9}\[))?", re.ASCII)
_BOX = re.compile(rf"\s{{0,9}}\[{','.join([_NUMBER] * 4)}\]\s{{0,9}},?", re.ASCII)
_CLOSE = re.compile(r"\s{0,9}\]?\s{0,9}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class DetBoxes(TaggedBoxes):
    """Lists of boxes between `<|det|>` tags, in 0..999."""

    ref: tuple[str, str] = ("<|ref|>", "<|/ref|>")
    box: tuple[str, str] = ("<|det|>", "<|/det|>")
    space: Space = Space.RELATIVE_999

    def render(self, boxes: Sequence[Box], views: Sequence[ImageView]) -> list[Segment]:
        """Raises `InputError` for a box of an image that is not there, or one that passes its image's edge."""
        segments: list[Segment] = []
        for label, group in groupby(boxes, key=lambda b: b.label):
            if label:
                segments += [SpecialSegment(name=self.ref[0]), TextSegment(text=label)]
                segments += [SpecialSegment(name=self.ref[1])]
            rows = [list(whole_corners(box, view_of(box, views), self.space)) for box in group]
            segments += [SpecialSegment(name=self.box[0]), TextSegment(text=str(rows))]
            segments += [SpecialSegment(name=self.box[1])]
        return segments

    def reader(self, view: ImageView | None, image: int) -> "DetReader":
        return DetReader(self, view, image)


class DetReader(TagReader):
    """One pass over an answer. Of a damaged list the boxes before the damage are kept, the rest stays words."""

    def close_box(self, *, closed: bool) -> None:
        """Reads the list between box tags. Without a closing tag, words may follow it."""
        if self.inside is None:
            return
        content, self.inside = "".join(self.inside), None
        opening = _OPEN.match(content)
        at = opening.end() if opening else 0
        found = []
        while match := _BOX.match(content, at):
            found.append(tuple(float(n) for n in match.groups()))
            at = match.end()
        ending = _CLOSE.match(content, at) if found else None
        at = ending.end() if ending else 0
        for numbers in found:
            self._add(numbers, () if closed else ("unclosed",))
        rest = content[at:]
        if rest:
            if closed or not found:
                self.broken.append(rest)
            self._say(rest)

    def _add(self, numbers: tuple[float, ...], flags: tuple[str, ...]) -> None:
        super()._add(numbers, flags)
        if self.view is None:
            self.parts[-1] = "[[{:g}, {:g}, {:g}, {:g}]]".format(*numbers)
