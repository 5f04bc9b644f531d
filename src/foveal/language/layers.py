"""A piece of a cache whose layers are looked up when they are asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from torch import Tensor


class Layers(Sequence[tuple[Tensor, ...]]):
    """The tensors of every layer, as a `Piece` has them."""

    @abstractmethod
    def layer(self, number: int) -> tuple[Tensor, ...]:
        """The tensors of one layer."""

    @overload
    def __getitem__(self, layer: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, layer: slice) -> list[tuple[Tensor, ...]]: ...
    def __getitem__(self, layer: int | slice) -> tuple[Tensor, ...] | list[tuple[Tensor, ...]]:
        if isinstance(layer, slice):
            return [self.layer(number) for number in range(*layer.indices(len(self)))]
        return self.layer(layer)
