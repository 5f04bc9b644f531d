"""Keys and values that a decoder has already computed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.core.shapes import Float


class Cache:
    """Keys and values of B sequences in every layer. Each sequence has its own memory: nothing is padded.

    Memory doubles when it is full. `lengths` counts the tokens held for each sequence; a decoder
    writes all its layers and then calls `advance` once.
    """

    def __init__(self, sequences: int, *, depth: int, capacity: int = 64) -> None:
        self.lengths = [0] * sequences
        self.capacity = capacity
        self._layers: list[list[tuple[Tensor, ...] | None]] = [[None] * sequences for _ in range(depth)]

    def write(self, layer: int, sequence: int, *new: Float[Tensor, "T G _"]) -> tuple[Float[Tensor, "G S _"], ...]:
        """Adds what T new tokens leave (keys and values; any number of tensors, of any head size).

        Returns each for all tokens of the sequence, heads first.
        """
        start = self.lengths[sequence]
        stop = start + len(new[0])
        stores = self._layers[layer][sequence]
        if stores is None or stores[0].shape[1] < stop:
            room = max(self.capacity, stop, 2 * start)
            grown = tuple(torch.empty(n.shape[1], room, n.shape[2], dtype=n.dtype, device=n.device) for n in new)
            if stores is not None:
                for large, small in zip(grown, stores, strict=True):
                    large[:, :start] = small[:, :start]
            self._layers[layer][sequence] = stores = grown
        for store, values in zip(stores, new, strict=True):
            store[:, start:stop] = values.transpose(0, 1)
        return tuple(store[:, :stop] for store in stores)

    def advance(self, lengths: Sequence[int]) -> None:
        """Counts the tokens that every layer has just written, one number a sequence."""
        self.lengths = [held + new for held, new in zip(self.lengths, lengths, strict=True)]

    def keep_only(self, sequences: Sequence[int]) -> None:
        """Drops all sequences but these, in this order."""
        self.lengths = [self.lengths[i] for i in sequences]
        self._layers = [[layer[i] for i in sequences] for layer in self._layers]
