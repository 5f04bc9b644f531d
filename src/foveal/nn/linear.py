"""The linear layer of all networks: torch's, and in inference in bfloat16 on a CPU the own kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.native import dense
from foveal.nn.native.tensors import readable


class Linear(nn.Linear):
    """y = x W^T + b, computed by `linear`."""

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "*B O"]:
    """x W^T + b. Weights of bfloat16 on a CPU are read as they lie, at the speed of memory (`nn.native.dense`):
    1.5 to 1.7 times as fast as torch's operator with up to 16 rows on two cores of a Xeon with AMX, and mostly faster
    with more (`benchmarks/linear.py`)."""
    if readable(weight, dtype=torch.bfloat16):
        out = by_kernel(x, weight, bias)
        if out is not None:
            return out
    return F.linear(x, weight, bias)


def by_kernel(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"] | dense.Compact, bias: Float[Tensor, "O"] | None
) -> Float[Tensor, "*B O"] | None:
    """x W^T + b with a weight that compiled code may read; None where the own kernel cannot, or had better not."""
    rows = (x if x.dim() == 2 else x.flatten(0, -2) if x.dim() > 2 else x[None]).contiguous()
    others = (rows,) if bias is None else (rows, bias)
    if not readable(*others, dtype=torch.bfloat16) or not dense.computes(rows.shape[0]):
        return None
    out = dense.product(rows, weight, bias)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], out.shape[1])
