"""Timing two or more things against each other: in turns within one run, so that what the machine does hits all.

Ratios are taken round by round and their median is told, with the smallest and the largest.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Paired:
    """Seconds of every round, by side; the first side is the one that others are compared with."""

    seconds: Mapping[str, list[float]]

    def median_s(self, side: str) -> float:
        return median(self.seconds[side])

    def ratios(self, side: str) -> list[float]:
        """How many times as long the first side took, round by round."""
        first = next(iter(self.seconds.values()))
        return [a / b for a, b in zip(first, self.seconds[side], strict=True)]

    def line(self, name: str, *, per: float = 1.0, unit: str = "s", rate: bool = False) -> str:
        """A row of a Markdown table: medians with their range, and the ratio of each further side.

        `per` is what a round did (tokens, say): times are divided by it, or with `rate` it is divided by them.
        """

        def shown(side: str) -> str:
            values = sorted(per / s if rate else s / per for s in self.seconds[side])
            return f"{median(values):.4g} {unit} ({values[0]:.4g}-{values[-1]:.4g})"

        sides = list(self.seconds)
        ratios = [self.ratios(side) for side in sides[1:]]
        told = [f"**{median(r):.2f} x** ({min(r):.2f}-{max(r):.2f})" for r in ratios]
        return f"| {name} | " + " | ".join([*map(shown, sides), *told]) + " |"


def paired(sides: Mapping[str, Callable[[], object]], *, rounds: int = 5, warm: int = 1) -> Paired:
    """Runs all sides in turns, every other round backwards, after `warm` rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides.items())
    for number in range(warm + rounds):
        for name, run in order if number % 2 == 0 else order[::-1]:
            start = time.perf_counter()
            run()
            if number >= warm:
                seconds[name].append(time.perf_counter() - start)
    return Paired(seconds)
