"""Linear layers whose weights of bfloat16 take 12 bits each, without loss: inference on a CPU with tiles (AMX) only.

While an answer is written, reading weights is what takes time: three quarters of the bytes take three quarters of it,
and every bit of the answer stays. Few exponents are frequent in trained weights (Zhang et al. 2025, "70% Size, 100%
Accuracy", section 2, whose codes have variable lengths); `nn/native/compact.h` tells how values lie here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.formed import FormedLinear
from foveal.nn.linear import Linear, by_kernel
from foveal.nn.native import dense
from foveal.nn.native.tensors import readable

SMALLEST = 1 << 20
"""Weights from which on a layer gains: smaller ones stay in a processor's cache."""


def compacts(layer: nn.Module) -> bool:
    """Whether a layer is a plain linear one that gains by the compact form here."""
    return (
        type(layer) is Linear
        and layer.weight.numel() >= SMALLEST
        and dense.way() == dense.TILES
        and readable(layer.weight.detach(), dtype=torch.bfloat16)
    )


class CompactLinear(FormedLinear):
    """A linear layer with a compact weight, whose results are those of the layer bit for bit."""

    def __init__(self, layer: nn.Linear, weight: dense.Compact) -> None:
        super().__init__(layer)
        self.compact = weight

    @classmethod
    def of(cls, layer: nn.Linear) -> "CompactLinear | None":
        """The compact form of a layer that `compacts`; None where its exponents are too many."""
        weight = dense.compacted(layer.weight.detach())
        return None if weight is None else cls(layer, weight)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the compact weight."""
        return self.compact.nbytes

    def values(self) -> Float[Tensor, "O I"]:
        """The weight, every bit of it."""
        return dense.opened(self.compact)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        out = by_kernel(x, self.compact, self.bias)
        return F.linear(x, self.values(), self.bias) if out is None else out
