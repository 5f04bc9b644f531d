"""What an evaluation is made of: samples with messages and a truth, and a grade for an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from foveal.core.box import Box


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question.

    Attributes:
        number: identifies the sample within its task.
        messages: the conversation up to the answer, in any form that `Model.chat` takes.
        blind: the same conversation with an empty picture.
        kind: which figures it counts for.
        truth: what `Task.grade` compares with.
        subject: what is asked about; breakdowns are by it.
    """

    number: int
    messages: list[dict[str, Any]]
    blind: list[dict[str, Any]]
    kind: str
    truth: Any
    subject: str = ""


class Said(Protocol):
    """An answer: words and boxes (see `foveal.engine.answer.Answer`)."""

    @property
    def text(self) -> str: ...

    @property
    def boxes(self) -> tuple[Box, ...]: ...


@dataclass(frozen=True)
class Guess:
    """An answer that needs no model, for baselines."""

    text: str
    boxes: tuple[Box, ...] = ()


class Task(Protocol):
    """A set of samples and how answers to them are graded."""

    name: str

    def samples(self) -> Sequence[Sample]:
        """All samples, in a fixed order."""
        ...

    def grade(self, sample: Sample, answer: Said) -> Mapping[str, float]:
        """Figure name -> score in 0..1; a sample may count for several figures."""
        ...

    def majority(self, sample: Sample) -> Said:
        """The best answer that looks neither at the picture nor at what is asked about."""
        ...
