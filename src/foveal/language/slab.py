"""Memory of pieces of caches, in parts that many pieces share.

A piece is small and stays; stores and activations beside it come and go. Were each piece memory of its own, it would
come to lie where one of those was, the next of them would not fit there any more, and the process would grow to more
than twice the bytes of its pieces.

    part    [ slot | slot |      | slot | ... ]        a slot holds one piece: all tensors of all layers, end to end
    part    [ slot |      |      |      | ... ]        moved into others once two parts' worth of slots are free
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.language.layers import Layers

PART_BYTES = 4 * 2**20
_ALIGNED = 64
Kind = tuple[tuple[tuple[tuple[int, ...], torch.dtype], ...], ...]
"""Shape and type of every tensor of a piece, layer by layer."""


class _Part:
    def __init__(self, slots: int, size: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # pieces may also go, and others move, where nothing is inferred
            self.memory = torch.empty(slots, size, dtype=torch.uint8, device=device)
        self.free = list(range(slots - 1, -1, -1))
        self.held: dict[int, _Slot] = {}


@dataclass(eq=False)
class _Slot:
    """Where a piece lies now."""

    part: _Part
    index: int


class SlabPiece(Layers):
    """A piece in a slab. Its tensors are valid until a piece of the slab is made or goes; its room is free again when
    the last reference to it goes."""

    def __init__(self, slab: "_Slab", slot: _Slot) -> None:
        self._slab, self._slot = slab, slot

    def __len__(self) -> int:
        return len(self._slab.layers)

    def layer(self, number: int) -> tuple[Tensor, ...]:
        """The tensors of a layer, as they lie in the slab."""
        memory = self._slot.part.memory[self._slot.index]
        places = self._slab.layers[number]
        return tuple(memory[start:stop].view(dtype).view(shape) for start, stop, dtype, shape in places)

    def __del__(self) -> None:
        self._slab.give(self._slot)


class _Slab:
    """Room for pieces of one kind."""

    def __init__(self, kind: Kind, device: torch.device, most: int) -> None:
        self.layers: list[list[tuple[int, int, torch.dtype, tuple[int, ...]]]] = []
        size = 0
        for tensors in kind:
            self.layers.append([])
            for shape, dtype in tensors:
                length = math.prod(shape) * dtype.itemsize
                self.layers[-1].append((size, size + length, dtype, shape))
                size += -(-length // _ALIGNED) * _ALIGNED
        self._size, self._device = size, device
        self._slots = max(1, min(PART_BYTES // max(1, size), most // 16))
        self._parts: list[_Part] = []
        self._free = 0

    @property
    def bytes(self) -> int:
        return len(self._parts) * self._slots * self._size

    def take(self) -> SlabPiece:
        if not self._free:
            self._parts.append(_Part(self._slots, self._size, self._device))
            self._free += self._slots
        part = next(part for part in reversed(self._parts) if part.free)
        self._free -= 1
        index = part.free.pop()
        slot = part.held[index] = _Slot(part, index)
        return SlabPiece(self, slot)

    def give(self, slot: _Slot) -> None:
        """Takes room back. The part with the fewest pieces goes, where all of them fit elsewhere."""
        del slot.part.held[slot.index]
        slot.part.free.append(slot.index)
        self._free += 1
        while self._parts and self._free >= min(2, len(self._parts)) * self._slots:
            self._close(min(self._parts, key=lambda part: len(part.held)))

    def _close(self, part: _Part) -> None:
        self._parts.remove(part)
        self._free -= self._slots
        for slot in part.held.values():
            there = next(p for p in self._parts if p.free)
            index = there.free.pop()
            there.memory[index].copy_(part.memory[slot.index])
            there.held[index] = slot
            slot.part, slot.index = there, index


class Slabs:
    """Room for pieces of any kind; there is one kind as long as a network keeps its type.

    Args:
        most: about how many pieces there may be; a part is a small share of them.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._found: dict[tuple[Kind, torch.device], _Slab] = {}

    @property
    def bytes(self) -> int:
        """Memory of all parts, free room included."""
        return sum(slab.bytes for slab in self._found.values())

    def take(self, kind: Kind, device: torch.device, count: int) -> list[SlabPiece]:
        """New pieces. What is in them is whatever was there before."""
        if (kind, device) not in self._found:
            self._found[kind, device] = _Slab(kind, device, self._most)
        return [self._found[kind, device].take() for _ in range(count)]
