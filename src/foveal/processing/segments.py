"""What a rendered conversation consists of before it becomes token ids.

A renderer (`foveal.processing.chat`, `.template`) turns messages into a flat list of segments. Only a
renderer makes `SpecialSegment` and `MediumSegment`; everything that a user, a tool or a file says is a
`TextSegment`, and text is encoded so that no special token can come out of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Part of a rendered conversation.

    Attributes:
        role: who says it ("system", "user", "assistant", "tool"; "prompt" in a raw prompt).
        turn: index of the message it belongs to; -1 for what the chat format adds by itself.
        learned: whether training learns to say it.
    """

    role: str = "prompt"
    turn: int = -1
    learned: bool = False


@dataclass(frozen=True, kw_only=True)
class TextSegment(Segment):
    """Plain text. Neighbouring text segments are joined before they are split into tokens, unless one is `alone`.

    A `tag` is one token where the vocabulary has it as added content, such as Qwen3's `<tool_call>`; elsewhere it is
    text. It never becomes a control token.
    """

    text: str
    alone: bool = False
    tag: bool = False


@dataclass(frozen=True, kw_only=True)
class SpecialSegment(Segment):
    """One special token, by name, e.g. `<|im_start|>`."""

    name: str


@dataclass(frozen=True, kw_only=True)
class MediumSegment(Segment):
    """The place of medium number `medium` of the conversation; becomes as many `pad` tokens as it takes.

    A medium whose tokens are divided evenly among several places has as many segments, each with `parts` set.
    """

    medium: int
    pad: str
    parts: int = 1


def as_text(segments: Iterable[Segment]) -> str:
    """The segments as one string in which every medium is one pad, as a published chat template writes it."""
    words = []
    for segment in segments:
        match segment:
            case TextSegment():
                words.append(segment.text)
            case SpecialSegment():
                words.append(segment.name)
            case MediumSegment():
                words.append(segment.pad)
    return "".join(words)
