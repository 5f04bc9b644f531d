"""What a training stage is, as data: how long, how fast, and which tensors learn."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from foveal.core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        name: also the name of its folder.
        steps: optimizer steps.
        batch: samples a step. Step s takes the samples `s * batch` to `(s + 1) * batch - 1`, so a stage that
            is resumed repeats and loses none.
        trainable: (pattern, learning rate or None) for parameter names, the first match counts; None freezes.
            A name that no pattern matches is an error.
        warmup: steps of linear growth of the rate.
        floor: share of the rate that is left at the end of the cosine.
        weight_decay: AdamW's, on matrices only.
        betas: AdamW's.
        clip: largest norm of the gradient.
        average: decay of the running average of the weights that checkpoints keep beside them; 0 for none.
        save_every, log_every: steps between checkpoints and between log lines.
    """

    name: str
    steps: int
    batch: int
    trainable: tuple[tuple[str, float | None], ...]
    warmup: int = 200
    floor: float = 0.02
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    average: float = 0.0
    save_every: int = 250
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Stage.{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.warmup <= self.steps:
            raise ConfigError(f"Stage.warmup is {self.warmup}; expected 0 to {self.steps} (its steps).")

    def factor(self, step: int) -> float:
        """What the rate is multiplied with at `step` (from 0): linear warm-up, then a cosine to `floor`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def rates(self, named: Iterable[tuple[str, T]]) -> list[tuple[str, T, float]]:
        """Name, parameter and rate of all that learns.

        Raises `ConfigError` for a parameter without a rule, and for a rule that no parameter follows.
        """
        rows, used = [], set()
        for name, parameter in named:
            for pattern, rate in self.trainable:
                if fnmatchcase(name, pattern):
                    used.add(pattern)
                    if rate is not None:
                        rows.append((name, parameter, rate))
                    break
            else:
                raise ConfigError(f"stage {self.name}: no rule says whether {name!r} learns; add a pattern.")
        _all_used(self.name, [p for p, _ in self.trainable], used)
        if not rows:
            raise ConfigError(f"stage {self.name}: every parameter is frozen; give one a learning rate.")
        return rows


def _all_used(stage: str, patterns: Sequence[str], used: set[str]) -> None:
    idle = [p for p in patterns if p not in used]
    if idle:
        raise ConfigError(f"stage {stage}: no parameter matches {', '.join(map(repr, idle))}; mend or drop it.")
