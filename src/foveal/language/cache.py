"""Keys and values that a decoder has already computed."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from foveal.core.shapes import Float
from foveal.language.slab import Slabs
from foveal.nn.attention import attend_cached
from foveal.nn.native import rows

FEW = 16
"""New tokens of a sequence up to which the kernel takes each by itself; more are faster as products of matrices."""

Piece = Sequence[tuple[Tensor, ...]]
"""What some tokens left in every layer: each tensor [G, n, K], heads first."""


Kind = tuple[int, int, torch.dtype, torch.device]
"""Heads, head size, type and place of what tokens leave."""


def kinds_of(new: Sequence[Float[Tensor, "T G _"]]) -> list[Kind]:
    """The kinds of what new tokens leave."""
    return [(n.shape[1], n.shape[2], n.dtype, n.device) for n in new]


class Store:
    """What the tokens of one sequence have left in every layer (keys and values, or whatever attention keeps).

    Each tensor is contiguous and heads first, so that attention reads it as it lies. `length` counts the tokens held.
    Memory grows to `capacity` tokens when a write passes what is there, layer by layer; a write that passes
    `capacity` too doubles it. What `cut` leaves lies in `slabs`.
    """

    in_a_row: ClassVar[bool] = True  # and so for whoever wants to write there, and read it as it lies (`room`)

    def __init__(self, depth: int, *, capacity: int = 64, slabs: Slabs | None = None) -> None:
        self.length = 0
        self.capacity = capacity
        self._slabs = slabs or Slabs()
        self._layers: list[tuple[Tensor, ...]] = [()] * depth

    def write(self, layer: int, *new: Float[Tensor, "T G _"]) -> tuple[Float[Tensor, "G S _"], ...]:
        """Adds what T new tokens leave behind the `length` that are there; returns each for all tokens, heads first."""
        start, stop = self.length, self.length + len(new[0])
        tensors = self.room(layer, stop, kinds_of(new))
        for tensor, values in zip(tensors, new, strict=True):
            tensor[:, start:stop] = values.transpose(0, 1)
        return tuple(tensor[:, :stop] for tensor in tensors)

    def room(self, layer: int, stop: int, kinds: Sequence[Kind]) -> tuple[Float[Tensor, "G C _"], ...]:
        """A layer's tensors with room for `stop` tokens, for somebody who writes there before the next `advance`."""
        tensors = self._layers[layer]
        if tensors and tensors[0].shape[1] >= stop:
            return tensors
        if stop > self.capacity:
            self.capacity = max(stop, 2 * self.length)
        made = tuple(torch.empty(g, self.capacity, k, dtype=dtype, device=device) for g, k, dtype, device in kinds)
        for large, small in zip(made, tensors, strict=False):
            large[:, : self.length] = small[:, : self.length]
        self._layers[layer] = made
        return made

    def cut(self, starts: Sequence[int], size: int) -> list[Piece]:
        """Copies of what `size` tokens from each of `starts` on left. The store is empty then.

        It goes layer by layer, so that never more than one layer is in memory twice.
        """
        kind = tuple(tuple(((t.shape[0], size, t.shape[2]), t.dtype) for t in ts) for ts in self._layers)
        pieces = self._slabs.take(kind, self._layers[0][0].device, len(starts)) if starts else []
        for layer, tensors in enumerate(self._layers):
            self._layers[layer] = ()
            for piece, start in zip(pieces, starts, strict=True):
                for tensor, copy in zip(tensors, piece[layer], strict=True):
                    copy.copy_(tensor[:, start : start + size])
        self.length = 0
        return [*pieces]

    def append(self, pieces: Sequence[Piece]) -> None:
        """Adds copies of `pieces`, in order, to every layer, and counts their tokens."""
        for piece in pieces:
            stop = self.length + piece[0][0].shape[1]
            for layer, values in enumerate(piece):
                tensors = self.room(layer, stop, [(v.shape[0], v.shape[2], v.dtype, v.device) for v in values])
                for tensor, value in zip(tensors, values, strict=True):
                    tensor[:, self.length : stop] = value
            self.length = stop

    def view(self, start: int, stop: int) -> Piece:
        """What tokens `start` to `stop` left, without copying: valid until the next write."""
        return [tuple(t[:, start:stop] for t in tensors) for tensors in self._layers]

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return sum(t.numel() * t.element_size() for tensors in self._layers for t in tensors)


class Cache:
    """The stores of B sequences that a decoder runs together. Nothing is padded.

    A decoder writes all its layers and then calls `advance` once.
    """

    def __init__(self, sequences: int, *, depth: int, capacity: int = 64) -> None:
        self.stores = [Store(depth, capacity=capacity) for _ in range(sequences)]

    @classmethod
    def of(cls, stores: Iterable[Store]) -> "Cache":
        """A cache over stores that belong to somebody else."""
        made = cls(0, depth=0)
        made.stores = list(stores)
        return made

    @property
    def lengths(self) -> list[int]:
        """Tokens held for each sequence."""
        return [store.length for store in self.stores]

    def write(self, layer: int, sequence: int, *new: Float[Tensor, "T G _"]) -> tuple[Float[Tensor, "G S _"], ...]:
        """Adds what T new tokens of a sequence leave (keys and values; any number of tensors, of any head size).

        Returns each for all tokens of the sequence, heads first.
        """
        return self.stores[sequence].write(layer, *new)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H K"],
        k: Float[Tensor, "T G K"],
        v: Float[Tensor, "T G L"],
        starts: Sequence[int],
    ) -> Float[Tensor, "T H L"]:
        """Adds keys and values of new tokens, sequences end to end; each token attends to all before it and itself.

        In bfloat16 on a CPU all sequences with few new tokens, as while answers are written, are one call.
        """
        spans = list(pairwise(starts))
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        kernel = rows.suits(q, k, v) and all(store.in_a_row for store in self.stores)
        few = [i for i, (a, b) in enumerate(spans) if 0 < b - a <= FEW] if kernel else []
        chosen = [row for i in few for row in range(*spans[i])]
        held = [held for i in few for held in self._held(layer, i, spans[i], kinds_of((k, v)))]
        if held and len(chosen) == len(q):
            return rows.attend(q, k, v, held)
        if len(spans) == 1:
            return attend_cached(q, *self.write(layer, 0, k, v))
        out = q.new_empty(len(q), q.shape[1], v.shape[2])
        if held:
            index = torch.tensor(chosen)
            out[index] = rows.attend(q[index], k[index], v[index], held)
        for sequence, (a, b) in enumerate(spans):
            if a < b and sequence not in few:
                out[a:b] = attend_cached(q[a:b], *self.write(layer, sequence, k[a:b], v[a:b]))
        return out

    def _held(self, layer: int, sequence: int, span: tuple[int, int], kinds: Sequence[Kind]) -> list[rows.Held]:
        """Where the keys and values of a sequence's new tokens go, and what each of them sees."""
        store, count = self.stores[sequence], span[1] - span[0]
        keys, values = store.room(layer, store.length + count, kinds)
        return [rows.Held(keys, values, store.length + i + 1) for i in range(count)]

    def held(self, layer: int, starts: Sequence[int], kinds: Sequence[Kind]) -> list[rows.Held] | None:
        """Where every new token leaves its key and value, for a kernel that writes them itself and attends to what is
        there; None where a sequence has more than `FEW` new ones, or a store whose tokens do not lie in a row."""
        spans = list(pairwise(starts))
        if any(b - a > FEW for a, b in spans) or not all(store.in_a_row for store in self.stores):
            return None
        return [held for i, span in enumerate(spans) if span[0] < span[1] for held in self._held(layer, i, span, kinds)]

    def advance(self, lengths: Sequence[int]) -> None:
        """Counts the tokens that every layer has just written, one number a sequence."""
        for store, new in zip(self.stores, lengths, strict=True):
            store.length += new
