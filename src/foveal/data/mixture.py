"""`Mixture`: sample number n of a run as a pure function of the seed, the sources, their weights and n.

Nothing is drawn and nothing remembered, so a run goes on from its step number alone, with any number of workers and
processes: whoever asks for number n gets the same sample, and every number is asked for once.
"""

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

from foveal.core.errors import InputError
from foveal.data.sample import Sample
from foveal.data.source import Source, unique

_ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sample comes from: number `index` of source number `part`, in that source's epoch `epoch` (from 0)."""

    part: int
    index: int
    epoch: int


class Mixture:
    """Sources mixed by weights.

    Among the first n samples, a source of share w has n * w of them, give or take 2 (1/2 where there are two
    sources), for every n. Each source is run through in a permutation of its own per epoch.

    Args:
        parts: sources with their weights, which are shares of samples up to a common factor.
        seed: of the permutations.

    Raises:
        InputError: no source, an empty one, two of the same name, or a weight that is not a number above 0.
    """

    def __init__(self, parts: Sequence[tuple[Source, float]], *, seed: int = 0) -> None:
        if not parts:
            raise InputError("a mixture of no sources; give it at least one (source, weight).")
        unique([source.name for source, _ in parts])
        for source, weight in parts:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise InputError(f"source {source.name!r} has weight {weight!r}; expected a number above 0.")
            if not len(source):
                raise InputError(f"source {source.name!r} has no samples; leave it out or mend its path.")
        self.sources = tuple(source for source, _ in parts)
        self.seed = seed
        self._lengths = [len(source) for source in self.sources]
        weights = [Fraction(str(weight)) for _, weight in parts]
        total = sum(weights)
        self.shares = tuple(float(w / total) for w in weights)
        self._tree = _tree(weights)

    def at(self, n: int) -> tuple[Sample, int]:
        """Sample number n (from 0, without end), and the epoch of its source that it belongs to."""
        place = self.place(n)
        return self.sources[place.part][place.index], place.epoch

    def place(self, n: int) -> Place:
        """Where sample number n comes from; nothing is read."""
        if n < 0:
            raise InputError(f"sample number {n} of a mixture; they count from 0.")
        node, rank = self._tree, n
        while isinstance(node, _Fork):
            first = node.first_of(rank)
            goes_first = node.first_of(rank + 1) > first
            node, rank = (node.first, first) if goes_first else (node.second, rank - first)
        length = self._lengths[node]
        epoch, step = divmod(rank, length)
        return Place(part=node, index=permuted(step, length, (self.seed, self.sources[node].name, epoch)), epoch=epoch)


@dataclass(frozen=True, kw_only=True)
class _Fork:
    """Two groups of sources; of n samples the first group gets the nearest whole number to `share` * n."""

    share: Fraction
    first: "_Fork | int"
    second: "_Fork | int"

    def first_of(self, n: int) -> int:
        return (2 * n * self.share.numerator + self.share.denominator) // (2 * self.share.denominator)


def _tree(weights: Sequence[Fraction]) -> _Fork | int:
    """Sources in a Huffman tree: large ones near the root, so that roundings add up to little."""
    order = count()
    heap: list[tuple[Fraction, int, _Fork | int]] = [(w, next(order), i) for i, w in enumerate(weights)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (small, _, second), (large, _, first) = heapq.heappop(heap), heapq.heappop(heap)
        share = large / (small + large)
        heapq.heappush(heap, (small + large, next(order), _Fork(share=share, first=first, second=second)))
    return heap[0][2]


def permuted(index: int, length: int, key: object) -> int:
    """Where `index` goes in a permutation of 0 .. `length` - 1 that belongs to `key` (whatever has a fixed `repr`).

    A Feistel network over the next power of four, walked until it lands inside: no table, and no bound on `length`.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    stream = hashlib.shake_256(repr(key).encode()).digest(16 * _ROUNDS)
    keys = [int.from_bytes(stream[16 * r : 16 * r + 16], "little") for r in range(_ROUNDS)]
    while True:
        left, right = index >> half, index & mask
        for k in keys:
            left, right = right, left ^ (_mixed(right ^ k) & mask)
        index = (left << half) | right
        if index < length:
            return index


def _mixed(value: int) -> int:
    """128 bits stirred: multiply and fold, twice."""
    full = (1 << 128) - 1
    for factor in (0x9E3779B97F4A7C15F39CC0605CEDC835, 0xD1B54A32D192ED03A24BAED4963EE407):
        value = (value ^ (value >> 61)) * factor & full
    return value ^ (value >> 67)
