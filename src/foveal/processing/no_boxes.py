"""For families that were never taught to write boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveal.core.box import Box, ImageView
from foveal.core.errors import InputError
from foveal.processing.grounding import Grounded
from foveal.processing.segments import Segment, TextSegment


@dataclass(frozen=True, kw_only=True)
class NoBoxes:
    """A `BoxStyle` that writes no box and finds none: all that the model says is words."""

    @property
    def specials(self) -> tuple[str, ...]:
        return ()

    def render(self, boxes: Sequence[Box], views: Sequence[ImageView]) -> list[Segment]:
        """Raises `InputError`: there is no form of a box that the model would understand."""
        named = ", ".join(repr(b.label) for b in boxes[:3] if b.label) or "without labels"
        raise InputError(
            f"{len(boxes)} boxes ({named}), but this family has no form for boxes; describe the place in words, or "
            "use a family that grounds."
        )

    def reader(self, view: ImageView | None, image: int) -> "WordReader":
        return WordReader()


class WordReader:
    """An `AnswerReader` of words alone; control tokens say nothing."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def take(self, segment: Segment) -> None:
        if isinstance(segment, TextSegment):
            self.text.append(segment.text)

    def finish(self) -> Grounded:
        text = "".join(self.text)
        return Grounded(text=text, parts=(text,) if text else ())
