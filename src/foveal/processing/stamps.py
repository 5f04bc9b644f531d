"""Videos as pictures with the time written before each (Qwen3-VL).

    <0.2 seconds><|vision_start|><|video_pad|>...<|vision_end|><1.3 seconds><|vision_start|>...<|vision_end|>

Times are text, so the model can read and say them, and positions need not count time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foveal.core.packed import Medium
from foveal.processing.segments import MediumSegment, Segment, SpecialSegment, TextSegment


@dataclass(frozen=True, kw_only=True)
class TimeStamps:
    """Divides the place of every video among its temporal patches; a `Processing.arrange`.

    Attributes:
        temporal: frames in a patch.
        around: tokens before and after the pads of a patch. Where the chat format has them around the whole
            video, they give way.
    """

    temporal: int = 2
    around: tuple[str, str] = ("<|vision_start|>", "<|vision_end|>")

    def __call__(self, segments: list[Segment], media: Sequence[Medium]) -> list[Segment]:
        """The same conversation with the time written before each temporal patch of a video."""
        arranged: list[Segment] = []
        skip = False
        for number, segment in enumerate(segments):
            if skip:
                skip = False
                continue
            if not isinstance(segment, MediumSegment) or media[segment.medium].kind != "video":
                arranged.append(segment)
                continue
            following = segments[number + 1] if number + 1 < len(segments) else None
            if arranged and _is(arranged[-1], self.around[0]) and following and _is(following, self.around[1]):
                arranged.pop()
                skip = True
            arranged += self._stamped(segment, media[segment.medium])
        return arranged

    def stamps(self, medium: Medium) -> list[str]:
        """The words before each temporal patch: the mean of its first and last time, to a tenth of a second."""
        steps, times = medium.grid[0], list(medium.times_s)
        times += times[-1:] * (steps * self.temporal - len(times))  # the last frame fills the last patch
        ends = zip(times[:: self.temporal], times[self.temporal - 1 :: self.temporal], strict=True)
        return [f"<{(first + last) / 2:.1f} seconds>" for first, last in ends]

    def markers(self, medium: Medium) -> int:
        """Tokens of the stamps and of what stands around them: a stamp is a bracket, digits, a point, a word, a
        bracket, each a token of its own in the vocabularies of Qwen."""
        return sum(len(words) - len(" seconds") + 1 + len(self.around) for words in self.stamps(medium))

    def _stamped(self, place: MediumSegment, medium: Medium) -> list[Segment]:
        role, turn = place.role, place.turn
        parts: list[Segment] = []
        for words in self.stamps(medium):
            parts += [
                TextSegment(text=words, role=role, turn=turn),
                SpecialSegment(name=self.around[0], role=role, turn=turn),
                replace(place, parts=medium.grid[0]),
                SpecialSegment(name=self.around[1], role=role, turn=turn),
            ]
        return parts


def _is(segment: Segment, name: str) -> bool:
    return isinstance(segment, SpecialSegment) and segment.name == name
