"""Linear layers whose weight lies in the order that the processor's matrix unit reads it in: inference on a CPU only.

A plain bfloat16 weight is put in that order at every call, by the library below torch (oneDNN); a packed one once.
On two cores of a Xeon with AMX a call with 1 to 16 rows takes 0.75 of the time, with 64 to 1300 rows 0.7 of it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.formed import FormedLinear
from foveal.nn.linear import Linear
from foveal.nn.native import rows

ROWS = 1024
"""Rows that several packed layers take together before the next rows come. Products are as fast with 256 rows as with
5,000, and memory that is used again at once costs neither new pages nor the way to the main memory."""


def packs(layer: nn.Module) -> bool:
    """Whether a layer is a plain linear one that can be packed here."""
    return (
        type(layer) is Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.bfloat16
        and torch._C._has_mkldnn
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedLinear(FormedLinear):
    """A linear layer with a packed weight."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().contiguous(), None)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return self._run(x, "none")

    def silu(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """silu(W x + b) in one pass."""
        return self._run(x, "swish")

    def times(self, x: Float[Tensor, "*B I"], other: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """(W x + b) * other in one pass."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, "mul")

    def _run(self, x: Tensor, activation: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], "")

    def values(self) -> Float[Tensor, "O I"]:
        """The weight, every bit of it."""
        return self.packed.to_dense()


def by_rows(compute: Callable[[Tensor], Tensor], x: Float[Tensor, "T D"]) -> Float[Tensor, "T O"]:
    """`compute` over `ROWS` rows at a time, so that what lies between its layers stays in the cache."""
    if len(x) <= ROWS or x.dim() != 2:
        return compute(x)
    out: Tensor | None = None
    for start in range(0, len(x), ROWS):
        part = compute(x[start : start + ROWS])
        if out is None:
            out = part.new_empty(len(x), part.shape[1])
        out[start : start + ROWS] = part
    return x.new_empty(0) if out is None else out


def silu_times(gate: nn.Module, up: nn.Module, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
    """silu(gate x) * (up x), in two passes over memory instead of four where both are packed."""
    if isinstance(gate, PackedLinear) and isinstance(up, PackedLinear):
        return up.times(x, gate.silu(x))
    opened = gate(x)
    if rows.suits(opened):
        return rows.gate(opened, up(x))
    opened = F.silu(opened)  # what it was made of is free before `up` comes
    return opened * up(x)
