"""Normalisation layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foveal.core.shapes import Float
from foveal.nn.native import rows


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019, eq. 4), statistics in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if rows.suits(x, self.weight):
            return rows.rms_norm(x, self.weight, self.eps)
        if x.requires_grad and x.device.type == "cpu":
            return _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """`RMSNorm` in training on a CPU, for which torch has no fused form: a third of the passes over memory.

    With n = x / rms(x) and t = dy * w * n: dx = (dy * w - n * mean(t)) / rms(x), dw = sum(dy * n).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        kind = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(kind)
        inverse = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).mul_(weight.to(kind)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        kind, width = inverse.dtype, x.shape[-1]
        above, factors = gradients[0].to(kind), weight.to(kind)
        normal = x.to(kind) * inverse
        products = (above * normal).reshape(-1, width)
        mean = (products @ factors / width).view_as(inverse)
        of_x = (above * factors).addcmul_(normal, mean, value=-1).mul_(inverse)
        of_weight = products.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return of_x.to(x.dtype), of_weight, None


class LayerNorm(nn.Module):
    """Layer normalisation with weight and bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
