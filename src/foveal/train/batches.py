"""From the number of a step to packs: samples -> this process's share -> processed -> packed, ahead of time.

A step's packs are a pure function of the stage, the step, and which of how many processes asks. Worker processes make
them in any order and hand them over in order, so their number changes nothing.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foveal.core.errors import ConfigError, FovealError, InputError
from foveal.data.augment import Augmentation
from foveal.data.sample import Sample
from foveal.train.stage import Stage
from foveal.train.task import Size, Task


@dataclass(frozen=True, kw_only=True)
class StepPacks:
    """What one process computes in a step.

    Attributes:
        step: number of the step.
        packs: what the task makes of samples; at least one.
        ids: "set:id" of the samples of each pack.
        weights: the weights of every pack's terms.
        sizes: what every pack takes.
        skipped: samples that were unfit, each with the reason.
    """

    step: int
    packs: tuple[Any, ...]
    ids: tuple[tuple[str, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    sizes: tuple[Size, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker, where the loader would wrap it in the text of a traceback."""

    error: FovealError


class Feed(Dataset):  # type: ignore[type-arg]
    """The packs of step number s of a stage, by index.

    Args:
        stage: with `data`.
        task, processor: as `Task.fitted` gives them.
        rank, world: which of how many processes this is; it takes every `world`-th sample of a step.
    """

    def __init__(self, stage: Stage, task: Task, processor: Any, *, rank: int = 0, world: int = 1) -> None:
        if stage.data is None:
            raise ConfigError(f"stage {stage.name} has no data; give it a Mixture.")
        if task.whole and stage.batch % world:
            raise ConfigError(f"stage {stage.name}: {world} processes cannot share {stage.batch} pairs evenly.")
        if task.whole and stage.unfit == "skip":
            raise ConfigError(f"stage {stage.name}: pairs are compared with each other, so none can be skipped.")
        self.stage, self.task, self.processor, self.rank, self.world = stage, task, processor, rank, world
        self._nothing: Any = None

    def numbers(self, step: int) -> range:
        """Numbers of the samples that this process takes in `step`."""
        first = step * self.stage.batch
        return range(first + self.rank, first + self.stage.batch, self.world)

    def sample(self, number: int) -> Sample:
        """Sample number `number` of the run, augmented as the stage says."""
        sample: Sample = self.stage.data.at(number)[0]
        augment, random = self.stage.augment, np.random.default_rng([self.stage.seed, number])
        if isinstance(augment, Augmentation):
            return augment.sample(sample, random, self.stage.budget)
        return sample if augment is None else augment(sample, random)

    def piece(self, sample: Sample) -> Any:
        """A sample processed. Raises the error of what is wrong with it, by its name."""
        try:
            piece = self.task.read(self.processor, sample, self.stage)
        except FovealError as error:
            raise type(error)(f"{sample}: {error}") from error
        tokens = self.task.size(piece).tokens
        if not self.task.whole and tokens > self.stage.max_tokens:
            raise InputError(
                f"{sample} has {tokens} tokens, more than a pack of max_tokens={self.stage.max_tokens}; "
                'raise it, make pictures smaller (`pixels`), or leave such samples out (unfit="skip").'
            )
        return piece

    def nothing(self) -> Any:
        """A piece with a picture that teaches nothing."""
        if self._nothing is None:
            self._nothing = self.task.nothing(self.processor, self.stage)
        return self._nothing

    def packs(self, step: int) -> StepPacks:
        """What this process computes in `step`. Raises `FovealError` for an unfit sample if the stage says "stop"."""
        pieces, names, skipped = [], [], []
        for number in self.numbers(step):
            try:
                sample = self.sample(number)
                pieces.append(self.piece(sample))
            except FovealError as error:
                if self.stage.unfit == "stop":
                    raise
                skipped.append(str(error))
                continue
            names.append(f"{sample.set}:{sample.id}")
        lengths = [self.task.size(piece).tokens for piece in pieces]
        groups = [list(range(len(pieces)))] if self.task.whole else packed(lengths, self.stage.max_tokens)
        packs, ids = [], []
        for group in groups:
            packs.append(self._together([pieces[i] for i in group]))
            ids.append(tuple(names[i] for i in group))
        if not packs:
            packs, ids = [self.nothing()], [()]
        return StepPacks(
            step=step,
            packs=tuple(packs),
            ids=tuple(ids),
            weights=tuple(self.task.weights(p) for p in packs),
            sizes=tuple(self.task.size(p) for p in packs),
            skipped=tuple(skipped),
        )

    def _together(self, pieces: Sequence[Any]) -> Any:
        """One pack. With several processes each has a picture, or those with text alone would not run the tower
        that the others wait in."""
        if self.world > 1 and not any(self.task.size(p).media for p in pieces):
            pieces = [*pieces, self.nothing()]
        return self.task.join(pieces)

    def __getitem__(self, step: int) -> StepPacks | _Failure:
        try:
            return self.packs(step)
        except FovealError as error:
            return _Failure(error)

    def steps(self, first: int, *, workers: int = 0, ahead: int = 4) -> Generator[StepPacks, None, None]:
        """The packs of the steps from `first` to the stage's last, made by `workers` processes ahead of time."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # how many is for the user to say
            loader = DataLoader(
                self,
                batch_size=None,
                sampler=range(first, self.stage.steps),
                num_workers=workers,
                prefetch_factor=ahead if workers else None,
                collate_fn=_as_is,
                worker_init_fn=_begin,
            )
            loaded = iter(loader)
        failed: FovealError | None = None
        try:
            for made in loaded:
                if isinstance(made, _Failure):
                    failed = made.error
                    break
                yield made
        finally:
            # Now and not with the garbage of an error's traceback, where workers are waited for in vain.
            del loaded, loader
        if failed is not None:
            raise failed


def packed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices in as few groups of at most `room` together as first-fit finds, longest first.

    Groups, and indices in them, are in the order of the samples. A length above `room` has a group of its own.
    """
    groups: list[list[int]] = []
    filled: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for group, taken in enumerate(filled):
            if taken + lengths[index] <= room:
                groups[group].append(index)
                filled[group] += lengths[index]
                break
        else:
            groups.append([index])
            filled.append(lengths[index])
    return sorted(sorted(group) for group in groups)


def _as_is(made: Any) -> Any:
    return made


def _begin(_: int) -> None:
    """A worker leaves Ctrl-C to the process that trains, computes on one core, and does not outlive that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    """Ends this process when its parent is gone: a killed one cannot, and a worker whose queue is full would wait for
    ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
