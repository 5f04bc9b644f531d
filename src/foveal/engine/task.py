"""One answer on its way through the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from foveal.core.packed import Packed, Run
from foveal.engine.request import Constraint, Generation
from foveal.engine.speculate import Lookup
from foveal.language.cache import Store


@dataclass(eq=False)
class Task:
    """One of the n answers of a request: its tokens so far, and what is computed of them.

    Attributes:
        id, index: of the request, and which of its answers.
        arrival: its place in the order in which requests came.
        packed: the prompt, one sequence.
        generation: sampling and the answer's tokens.
        patches: which rows of `packed.patches` each medium has.
        contents: content key of each medium.
        keys: keys of the whole blocks that may be found again, as far as they are known.
        chunk: most prompt tokens to compute in one step.
        mates: the other answers of the request, which join when the prompt is computed.
        store: keys and values; None while it waits.
        blocks: how many blocks the store may fill.
        held: how many of `keys` the store holds.
        visual: visual tokens of media that are needed and not yet used up.
        cached_tokens: tokens of the prompt that did not have to be computed.
    """

    id: str
    index: int
    arrival: int
    packed: Packed
    generation: Generation
    patches: Sequence[slice] = ()
    contents: Sequence[bytes] = ()
    keys: list[bytes] = field(default_factory=list)
    constraint: Constraint | None = None
    chunk: int | None = None
    mates: list["Task"] = field(default_factory=list)
    lookup: Lookup | None = None
    store: Store | None = None
    blocks: int = 0
    held: int = 0
    visual: dict[int, Tensor] = field(default_factory=dict)
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.generation.prompt)
        self.tokens = [*self.generation.prompt, *self.generation.ids]
        self.runs: list[Run] = sorted(self.packed.runs, key=lambda run: run.start)
        counts: dict[int, int] = {}
        self.offsets: list[int] = []  # the first visual token of each run within its medium
        for run in self.runs:
            self.offsets.append(counts.get(run.medium, 0))
            counts[run.medium] = self.offsets[-1] + run.length

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are there."""
        return 0 if self.store is None else self.store.length

    @property
    def pending(self) -> int:
        """Tokens that have to be computed before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def most_tokens(self) -> int:
        """Tokens that may have to be computed; the last one of an answer never has."""
        return self.prompt_tokens + self.generation.max_tokens - 1

    def needs(self, start: int, stop: int) -> list[int]:
        """Media of which tokens `start` to `stop` show something, in order."""
        return list(dict.fromkeys(r.medium for r in self.runs if r.start < stop and r.start + r.length > start))

    def say(self, token: int, stops: frozenset[int]) -> None:
        """Takes the next token of the answer."""
        self.generation.accept(token, stops)
        self.tokens.append(token)

    def forget_media(self) -> None:
        """Drops visual tokens that are used up."""
        if self.visual:
            needed = self.needs(self.computed, len(self.tokens))
            self.visual = {medium: self.visual[medium] for medium in needed if medium in self.visual}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Tokens of one task that a step computes: those from `start` to `stop`, and then a guess at what follows.

    Where nothing is left behind them, they are scored: after the last of them, and after each guessed one.
    """

    task: Task
    start: int
    stop: int
    guess: tuple[int, ...] = ()

    @property
    def scored(self) -> int:
        """After how many tokens the next one is scored."""
        return 1 + len(self.guess) if self.stop == len(self.task.tokens) else 0

    @property
    def tokens(self) -> np.ndarray:
        return np.array([*self.task.tokens[self.start : self.stop], *self.guess], dtype=np.int64)
