"""Feed-forward parts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.linear import Linear
from foveal.nn.native import rows
from foveal.nn.packed import PackedLinear, by_rows, silu_times

Activation = Callable[[Tensor], Tensor]


def quick_gelu(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP was trained with."""
    if x.requires_grad:
        return x * torch.sigmoid(1.702 * x)
    return (1.702 * x).sigmoid_().mul_(x)  # the same numbers, one array instead of three


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.up = Linear(width, mlp_width)
        self.down = Linear(mlp_width, width)
        self.activation = activation

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return by_rows(self._rows, x) if isinstance(self.up, PackedLinear) else self._rows(x)

    def _rows(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        hidden = self.up(x)
        in_place = self.activation is quick_gelu and rows.suits(hidden)
        hidden = rows.quick_gelu(hidden) if in_place else self.activation(hidden)  # what was there is free for `down`
        return self.down(hidden)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6): down(silu(gate x) * up x)."""

    def __init__(self, width: int, mlp_width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate = Linear(width, mlp_width, bias=bias)
        self.up = Linear(width, mlp_width, bias=bias)
        self.down = Linear(mlp_width, width, bias=bias)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return by_rows(self._rows, x) if isinstance(self.up, PackedLinear) else self._rows(x)

    def _rows(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.down(silu_times(self.gate, self.up, x))
