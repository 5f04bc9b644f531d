"""Zero-shot classification: which of some labels a model with two towers finds for pictures (CLIP, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.core.errors import InputError
from foveal.engine.dual import TEMPLATES, Dual


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Right answers of a model.

    Attributes:
        right, count: label -> pictures of it that were named right, and all pictures of it.
        labels: how many labels there were to choose from.
    """

    right: dict[str, int]
    count: dict[str, int]
    labels: int

    @property
    def share(self) -> float:
        """Of all pictures, those that were named right."""
        return sum(self.right.values()) / sum(self.count.values())

    @property
    def chance(self) -> float:
        """What guessing gives."""
        return 1 / self.labels

    @property
    def bounds(self) -> tuple[float, float]:
        """95 % interval of the share if labels and their pictures are drawn together (normal approximation).

        Pictures of one label are alike, so they do not count as so many independent ones: the spread is that between
        labels. (0, 1) where there is one label only.
        """
        number, pictures = len(self.count), sum(self.count.values())
        if number < 2:
            return 0.0, 1.0
        share = self.share
        offs = [self.right[label] - share * count for label, count in self.count.items()]
        error = (number / (number - 1) * sum(off * off for off in offs)) ** 0.5 / pictures
        return max(0.0, share - 1.96 * error), min(1.0, share + 1.96 * error)

    def figures(self) -> dict[str, float]:
        """As a log holds them."""
        low, high = self.bounds
        return {
            "zero_shot": self.share,
            "low": low,
            "high": high,
            "pictures": sum(self.count.values()),
            "labels": self.labels,
            "chance": self.chance,
        }


def zero_shot(
    model: Dual,
    images: Sequence[Any],
    truths: Sequence[str],
    labels: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    batch: int = 32,
) -> ZeroShot:
    """Grades a model on pictures, as `foveal match` sees them.

    Args:
        truths: the label of each picture.
        labels: all that may be answered.
        templates: sentences with `{}` for the label.

    Raises `InputError` for pictures without a truth among the labels.
    """
    if not images:
        raise InputError("there is no picture to grade; pass at least one.")
    if len(images) != len(truths):
        raise InputError(f"{len(images)} pictures but {len(truths)} truths; give every picture one.")
    if strange := sorted(set(truths) - set(labels)):
        raise InputError(f"the truth {strange[0]!r} is not among the labels.")
    right, count = dict.fromkeys(truths, 0), dict.fromkeys(truths, 0)
    for match, truth in zip(model.classify(images, labels, templates=templates, batch=batch), truths, strict=True):
        count[truth] += 1
        right[truth] += match.label == truth
    return ZeroShot(right=right, count=count, labels=len(labels))
