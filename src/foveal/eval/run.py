"""Grading a model on a task, beside what can be had without looking."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from foveal.core.errors import InputError
from foveal.eval.metrics import interval
from foveal.eval.task import Said, Sample, Task


class Answerer(Protocol):
    """What answers conversations; `foveal.engine.model.Model` does."""

    def chat_all(self, conversations: Sequence[Any], **options: Any) -> Sequence[Said]:
        """One answer for every conversation."""
        ...


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A share of right answers: their number, the sum of scores, and Wilson's 95 % interval."""

    count: int
    right: float

    @property
    def share(self) -> float:
        return self.right / self.count if self.count else 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        return interval(self.right, self.count)


@dataclass(frozen=True, kw_only=True)
class Miss:
    """An answer that was graded below 1."""

    number: int
    kind: str
    question: str
    answer: str
    truth: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures of one evaluation.

    Attributes:
        task: its name.
        figures: of the model, by name.
        blind: of the same model with empty pictures; none when it was not asked for.
        majority: of the best fixed answers.
        subjects: right and asked of the figures that are broken down by subject: figure -> subject -> figure.
        seconds: wall time of the model's answers.
        misses: the first answers that were wrong.
    """

    task: str
    figures: dict[str, Figure]
    majority: dict[str, Figure]
    blind: dict[str, Figure] = field(default_factory=dict)
    subjects: dict[str, dict[str, Figure]] = field(default_factory=dict)
    seconds: float = 0.0
    misses: tuple[Miss, ...] = ()

    def table(self) -> str:
        """The figures as a Markdown table."""
        lines = [
            "| figure | questions | right | 95 % interval | blind | majority |",
            "|---|---|---|---|---|---|",
        ]
        for name, figure in self.figures.items():
            low, high = figure.bounds
            blind = f"{self.blind[name].share:.1%}" if name in self.blind else "-"
            lines.append(
                f"| {name} | {figure.count} | {figure.share:.1%} | {low:.1%} to {high:.1%} | {blind} "
                f"| {self.majority[name].share:.1%} |"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""

        def plain(figures: dict[str, Figure]) -> dict[str, Any]:
            return {
                n: {"questions": f.count, "right": round(f.right, 3), "share": round(f.share, 4)}
                for n, f in figures.items()
            }

        return {
            "task": self.task,
            "figures": plain(self.figures),
            "blind": plain(self.blind),
            "majority": plain(self.majority),
            "subjects": {kind: plain(figures) for kind, figures in self.subjects.items()},
            "seconds": round(self.seconds, 1),
            "misses": [vars(m) for m in self.misses],
        }


def evaluate(
    model: Answerer,
    task: Task,
    *,
    batch: int = 32,
    limit: int | None = None,
    blind: bool = True,
    keep_misses: int = 200,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Result:
    """Asks `model` every question of `task`.

    Args:
        model: what answers.
        task: samples and their grading.
        batch: conversations at a time; the answers do not depend on it.
        limit: only the first so many samples.
        blind: ask everything once more with empty pictures.
        keep_misses: how many wrong answers to keep.
        progress: called with the samples done and their total, after every batch.
        options: sampling options of `model.chat_all`; the answers are greedy unless these say otherwise.

    Raises:
        InputError: the task has no samples, or `batch` or `limit` is below 1.
    """
    if batch < 1 or (limit is not None and limit < 1):
        raise InputError(f"batch is {batch} and limit {limit}; both must be at least 1.")
    samples = list(task.samples())[:limit]
    if not samples:
        raise InputError(f"task {task.name!r} has no samples.")
    options = {"temperature": 0.0, "max_tokens": 160, **options}
    total = len(samples) * (2 if blind else 1)
    done = 0

    def answers(conversations: Sequence[Any]) -> Iterator[Said]:
        nonlocal done
        for start in range(0, len(conversations), batch):
            part = conversations[start : start + batch]
            yield from model.chat_all(part, **options)
            done += len(part)
            if progress is not None:
                progress(done, total)

    begun = time.perf_counter()
    grades = _Grades()
    misses: list[Miss] = []
    subjects: dict[str, dict[str, _Grades]] = {}
    for sample, answer in zip(samples, answers([s.messages for s in samples]), strict=True):
        scores = task.grade(sample, answer)
        grades.add(scores)
        for name, score in scores.items():
            subjects.setdefault(name, {}).setdefault(sample.subject, _Grades()).add({name: score})
        if min(scores.values()) < 1 and len(misses) < keep_misses:
            misses.append(_miss(sample, answer))
    seconds = time.perf_counter() - begun
    fixed, empty = _Grades(), _Grades()
    for sample in samples:
        fixed.add(task.grade(sample, task.majority(sample)))
    if blind:
        for sample, answer in zip(samples, answers([s.blind for s in samples]), strict=True):
            empty.add(task.grade(sample, answer))
    return Result(
        task=task.name,
        figures=grades.figures(),
        majority=fixed.figures(),
        blind=empty.figures(),
        subjects={
            name: {subject: g.figures()[name] for subject, g in sorted(by.items())} for name, by in subjects.items()
        },
        seconds=seconds,
        misses=tuple(misses),
    )


class _Grades:
    """Sums of scores by figure."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[int, float]] = {}

    def add(self, scores: Any) -> None:
        for name, score in scores.items():
            count, right = self.sums.get(name, (0, 0.0))
            self.sums[name] = count + 1, right + score

    def figures(self) -> dict[str, Figure]:
        return {name: Figure(count=count, right=right) for name, (count, right) in sorted(self.sums.items())}


def _miss(sample: Sample, answer: Said) -> Miss:
    last = sample.messages[-1]["content"]
    asked = " ".join(p["text"] for p in last if p.get("type") == "text") if isinstance(last, list) else str(last)
    said = answer.text + "".join(f" {[round(c) for c in b.corners]}" for b in answer.boxes)
    return Miss(number=sample.number, kind=sample.kind, question=asked, answer=said, truth=str(sample.truth))
