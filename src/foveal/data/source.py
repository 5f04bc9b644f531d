"""`Source`: a data set whose samples are reached by their number, so that nothing needs to be remembered to go on."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

from foveal.core.errors import InputError
from foveal.data.sample import Sample


@runtime_checkable
class Source(Protocol):
    """Samples number 0 to `len(source) - 1`. The same number always gives the same sample."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Listed:
    """Samples in memory."""

    def __init__(self, name: str, samples: Sequence[Sample]) -> None:
        self.name, self._samples = name, samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[checked(index, len(self), self.name)]


class Chained:
    """Several sources, such as the shards of a folder, as one."""

    def __init__(self, name: str, parts: Sequence[Source]) -> None:
        self.name, self.parts = name, tuple(parts)
        self._ends = list(accumulate(len(p) for p in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        index = checked(index, len(self), self.name)
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


def checked(index: int, length: int, name: str) -> int:
    """`index`, if `name` has such a sample; an `IndexError` otherwise, so that a source can be iterated."""
    if not 0 <= index < length:
        raise IndexError(f"{name} has {length} samples, numbers 0 to {length - 1}; asked for number {index}.")
    return index


def unique(names: Sequence[str]) -> None:
    """Raises `InputError` if two sources share a name: errors and resuming go by it."""
    twice = sorted({n for n in names if list(names).count(n) > 1})
    if twice:
        raise InputError(f"two sources are called {twice[0]!r}; give each a name of its own.")
