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
        self._layers: list[list[Tensor | None]] = [[None] * sequences for _ in range(depth)]

    def write(
        self, layer: int, sequence: int, k: Float[Tensor, "T G K"], v: Float[Tensor, "T G K"]
    ) -> tuple[Float[Tensor, "G S K"], Float[Tensor, "G S K"]]:
        """Adds the keys and values of T new tokens; returns those of all tokens of the sequence, heads first."""
        start = self.lengths[sequence]
        stop = start + len(k)
        store = self._layers[layer][sequence]
        if store is None or store.shape[2] < stop:
            room = max(self.capacity, stop, 2 * start)
            grown = torch.empty(2, k.shape[1], room, k.shape[2], dtype=k.dtype, device=k.device)
            if store is not None:
                grown[:, :, :start] = store[:, :, :start]
            self._layers[layer][sequence] = store = grown
        store[0, :, start:stop] = k.transpose(0, 1)
        store[1, :, start:stop] = v.transpose(0, 1)
        return store[0, :, :stop], store[1, :, :stop]

    def advance(self, lengths: Sequence[int]) -> None:
        """Counts the tokens that every layer has just written, one number a sequence."""
        self.lengths = [held + new for held, new in zip(self.lengths, lengths, strict=True)]

    def keep_only(self, sequences: Sequence[int]) -> None:
        """Drops all sequences but these, in this order."""
        self.lengths = [self.lengths[i] for i in sequences]
        self._layers = [[layer[i] for i in sequences] for layer in self._layers]
