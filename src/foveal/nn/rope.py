"""Rotary position embedding (RoFormer, eq. 15) with one or several position axes.

Angles are always computed in float32. "Half-split" form: feature i turns with feature i + K/2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveal.core.shapes import Float, Int
from foveal.nn.native import rows

# torch's cosine and sine on a CPU are Intel MKL's, which chooses its code at the first call. When two threads make
# that first call together, one of them computes with a coarser code: wrong by up to 1.5e-4, in 6 of 60 fresh
# processes (torch 2.13). One value is computed by one thread, so the choice is made here, before anybody needs it.
for _first_call in (torch.cos, torch.sin):
    _first_call(torch.zeros(1))


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines [T, 1, K] of every token, ready for all heads."""

    cos: Tensor
    sin: Tensor

    def to(self, dtype: torch.dtype) -> "Rotation":
        return Rotation(self.cos.to(dtype), self.sin.to(dtype))

    @cached_property
    def signed(self) -> Tensor:
        """The sines, negative in the first half [T, 1, K]."""
        low, high = self.sin.chunk(2, dim=-1)
        return torch.cat((-low, high), dim=-1)

    def __call__(self, x: Float[Tensor, "T H K"]) -> Float[Tensor, "T H K"]:
        """Rotates queries or keys; computed in the rotation's type, returned in that of `x`."""
        if x.requires_grad:
            return _Turn.apply(x, self.cos, self.signed)  # type: ignore[no-untyped-call]
        if rows.rotates(x, self.cos, self.sin):
            return rows.rotate(x, self.cos, self.sin)
        low, high = x.to(self.cos.dtype).chunk(2, dim=-1)
        cos, sin = self.cos.chunk(2, dim=-1)[0], self.sin.chunk(2, dim=-1)[0]
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)

    def part(self, rows: slice) -> "Rotation":
        """That of some tokens."""
        return Rotation(self.cos[rows], self.sin[rows])

    def turn_(self, x: Float[Tensor, "T N H K"]) -> None:
        """Rotates the heads of N kinds in place, for inference; computed in the rotation's type."""
        low, high = x.to(self.cos.dtype).chunk(2, dim=-1)
        cos, sin = self.cos.chunk(2, dim=-1)[0][:, None], self.sin.chunk(2, dim=-1)[0][:, None]
        size = low.shape[-1]
        x[..., :size] = (low * cos).addcmul_(high, sin, value=-1)
        x[..., size:] = (high * cos).addcmul_(low, sin)


class _Turn(torch.autograd.Function):
    """Rotation in training: whole rows at a time, and on the way back the same by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed)
        return _turned(x, cos, signed, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, signed = ctx.saved_tensors
        return _turned(gradients[0], cos, signed, -1), None, None


def _turned(x: Tensor, cos: Tensor, signed: Tensor, way: int) -> Tensor:
    """x cos + way * (x with its halves exchanged) * signed."""
    low, high = x.chunk(2, dim=-1)
    exchanged = torch.cat((high, low), dim=-1).to(cos.dtype)
    return (x.to(cos.dtype) * cos).addcmul_(exchanged, signed, value=way).to(x.dtype)


def frequencies(size: int, theta: float, device: torch.device) -> Float[Tensor, "F"]:
    """size / 2 angular frequencies theta ** (-2i / size)."""
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)


def text_rotation(positions: Int[Tensor, "A T"], *, head_dim: int, theta: float, section: Sequence[int]) -> Rotation:
    """M-RoPE (Qwen2-VL, section 2.1): frequency i follows the axis whose contiguous section holds it.

    `section` sums to head_dim / 2, one entry a position axis; with one axis this is plain RoPE.
    """
    turns = torch.split(frequencies(head_dim, theta, positions.device), list(section))
    # Axis by axis: an index of axes would have to be copied to the device, and waited for.
    return _rotation(torch.cat([p[:, None] * t for p, t in zip(positions.to(torch.float32), turns, strict=True)], -1))


def interleaved_rotation(
    positions: Int[Tensor, "A T"], *, head_dim: int, theta: float, section: Sequence[int]
) -> Rotation:
    """M-RoPE whose axes take turns (Qwen3-VL): of every three frequencies the second is the height's and the third
    the width's as long as their sections last; all others are the time's, so that each axis has slow and fast ones."""
    axis = torch.zeros(head_dim // 2, dtype=torch.int64, device=positions.device)
    for number in range(1, len(section)):
        axis[number : len(section) * section[number] : len(section)] = number
    return _rotation(positions.to(torch.float32)[axis].T * frequencies(head_dim, theta, positions.device))


def grid_rotation(rows: Int[Tensor, "P"], cols: Int[Tensor, "P"], *, head_dim: int, theta: float) -> Rotation:
    """2-D RoPE of a vision tower: a quarter of the features turns with the row, a quarter with the column,
    and the other half repeats them."""
    turns = frequencies(head_dim // 2, theta, rows.device)
    angles = torch.cat((rows[:, None] * turns, cols[:, None] * turns), dim=-1)
    return _rotation(angles)


def _rotation(angles: Float[Tensor, "T F"]) -> Rotation:
    both = torch.cat((angles, angles), dim=-1)[:, None]
    return Rotation(both.cos(), both.sin())
