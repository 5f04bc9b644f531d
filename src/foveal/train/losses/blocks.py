"""Sums over all pairs of rows and columns whose logits exist one block at a time.

Logits are `scale * rows @ cols.T`, [R, C]. None of these functions keeps them for the backward pass: it computes
them again, block by block, which costs one more product of matrices that are small beside the towers. One block lives
at a time, changed in place (two in the sigmoid's forward pass). `chunk` is the largest side of a block; None takes all
pairs as one block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveal.core.shapes import Float


def log_sum_exp(
    rows: Float[Tensor, "R D"], cols: Float[Tensor, "C D"], scale: Float[Tensor, ""], chunk: int | None
) -> Float[Tensor, "R"]:
    """log sum_j exp(logit_ij) of every row."""
    return _LogSumExp.apply(rows, cols, scale, chunk)  # type: ignore[no-untyped-call]


def expected(
    rows: Float[Tensor, "R D"],
    cols: Float[Tensor, "C D"],
    scale: Float[Tensor, ""],
    teacher: tuple[Float[Tensor, "R E"], Float[Tensor, "C E"], Float[Tensor, ""]],
    chunk: int | None,
) -> Float[Tensor, "R"]:
    """sum_j p_ij logit_ij of every row; p is the softmax over columns of the teacher's logits, a constant."""
    return _Expected.apply(rows, cols, scale, *(t.detach() for t in teacher), chunk)  # type: ignore[no-untyped-call]


def log_sigmoid_sum(
    rows: Float[Tensor, "R D"],
    cols: Float[Tensor, "C D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    pairs: bool,
    chunk: int | None,
) -> Float[Tensor, ""]:
    """sum_ij -log sigmoid(z_ij (logit_ij + bias)); z is -1, but with `pairs` 1 where i = j."""
    return _LogSigmoidSum.apply(rows, cols, scale, bias, pairs, chunk)  # type: ignore[no-untyped-call]


def _parts(length: int, chunk: int | None) -> Iterator[slice]:
    step = chunk or max(1, length)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, cols: Tensor, scale: Tensor, chunk: int | None) -> Tensor:
        sums = rows.new_full((len(rows),), float("-inf"))
        for r in _parts(len(rows), chunk):
            for c in _parts(len(cols), chunk):
                block = (rows[r] @ cols[c].T).mul_(scale)
                top = block.amax(1)
                found = block.sub_(top[:, None]).exp_().sum(1).log_().add_(top)
                sums[r] = torch.logaddexp(sums[r], found)
                del block  # before the next one is made
        ctx.save_for_backward(rows, cols, scale, sums)
        ctx.chunk = chunk
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, cols, scale, sums = ctx.saved_tensors
        (gradient,) = gradients
        back = _Back(rows, cols, scale)
        for r in _parts(len(rows), ctx.chunk):
            for c in _parts(len(cols), ctx.chunk):
                shares = (rows[r] @ cols[c].T).mul_(scale).sub_(sums[r, None]).exp_()
                back.add(r, c, shares.mul_(gradient[r, None]))
                del shares
        return *back.gradients(), None


class _Expected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        cols: Tensor,
        scale: Tensor,
        teacher_rows: Tensor,
        teacher_cols: Tensor,
        teacher_scale: Tensor,
        chunk: int | None,
    ) -> Tensor:
        sums = log_sum_exp(teacher_rows, teacher_cols, teacher_scale, chunk)
        found = rows.new_zeros(len(rows))
        for r in _parts(len(rows), chunk):
            for c in _parts(len(cols), chunk):
                shares = (teacher_rows[r] @ teacher_cols[c].T).mul_(teacher_scale).sub_(sums[r, None]).exp_()
                # sum_j p_ij <x_i, y_j> = <x_i, sum_j p_ij y_j>: no second block is needed.
                found[r] += (rows[r] * (shares @ cols[c])).sum(1) * scale
                del shares
        ctx.save_for_backward(rows, cols, scale, teacher_rows, teacher_cols, teacher_scale, sums)
        ctx.chunk = chunk
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols, scale, teacher_rows, teacher_cols, teacher_scale, sums = ctx.saved_tensors
        (gradient,) = gradients
        back = _Back(rows, cols, scale)
        for r in _parts(len(rows), ctx.chunk):
            for c in _parts(len(cols), ctx.chunk):
                shares = (teacher_rows[r] @ teacher_cols[c].T).mul_(teacher_scale).sub_(sums[r, None]).exp_()
                back.add(r, c, shares.mul_(gradient[r, None]))
                del shares
        return *back.gradients(), None, None, None, None


class _LogSigmoidSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor, pairs: bool, chunk: int | None
    ) -> Tensor:
        ctx.save_for_backward(rows, cols, scale, bias)
        ctx.pairs, ctx.chunk = pairs, chunk
        total = rows.new_zeros(())
        for r in _parts(len(rows), chunk):
            for c in _parts(len(cols), chunk):
                block = _signed(rows[r], cols[c], scale, bias, pairs and r == c)
                # -log sigmoid(x) = max(-x, 0) + log(1 + exp(-|x|))
                total -= block.clamp(max=0).sum()
                total += block.abs_().neg_().exp_().log1p_().sum()
                del block
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols, scale, bias = ctx.saved_tensors
        back, shift = _Back(rows, cols, scale), torch.zeros_like(bias)
        for r in _parts(len(rows), ctx.chunk):
            for c in _parts(len(cols), ctx.chunk):
                # The derivative of -log sigmoid(z x) is -z sigmoid(-z x).
                block = _signed(rows[r], cols[c], scale, bias, ctx.pairs and r == c).neg_().sigmoid_()
                if ctx.pairs and r == c:
                    block.diagonal().neg_()
                shift += block.sum()
                back.add(r, c, block)
                del block
        mine = (g * gradients[0] for g in back.gradients())
        return *mine, shift * gradients[0], None, None


def _signed(rows: Tensor, cols: Tensor, scale: Tensor, bias: Tensor, pairs: bool) -> Tensor:
    """z_ij (logit_ij + bias)."""
    block = (rows @ cols.T).mul_(scale).add_(bias).neg_()
    if pairs:
        block.diagonal().neg_()
    return block


class _Back:
    """Gradients of rows, columns and scale from those of the logits, block by block."""

    def __init__(self, rows: Tensor, cols: Tensor, scale: Tensor) -> None:
        self.rows, self.cols, self.scale = rows, cols, scale
        self.of_rows, self.of_cols = torch.zeros_like(rows), torch.zeros_like(cols)

    def add(self, r: slice, c: slice, block: Tensor) -> None:
        """`block` is the gradient of the logits of rows `r` and columns `c`."""
        self.of_rows[r].addmm_(block, self.cols[c])
        self.of_cols[c].addmm_(block.T, self.rows[r])

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows, columns and scale. sum_ij G_ij <x_i, y_j> = sum_i <x_i, sum_j G_ij y_j>."""
        of_scale = (self.of_rows * self.rows).sum()
        return self.of_rows.mul_(self.scale), self.of_cols.mul_(self.scale), of_scale
