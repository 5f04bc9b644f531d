"""Attention of a training step in bfloat16 on a CPU: plain matrix products, forth and back.

A CPU multiplies whole matrices of bfloat16 many times faster than of float32, which torch's fused attention profits
little from. Queries go in blocks, so that a block stays in the cache and a causal one leaves out the keys that none of
it sees. Shares of up to `KEPT_BYTES` are kept for the way back; of more, one block lives at a time, and is computed
again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveal.core.shapes import Float

BLOCK_VALUES = 3 * 2**19
"""Scores of a block of queries, about."""

KEPT_BYTES = 2**26
LONGEST = 1024
"""Above that torch's fused attention is faster where every token sees all (1200 tokens: 29 ms against 37)."""


def is_faster(q: Float[Tensor, "T H K"], length: int, *, causal: bool) -> bool:
    """Whether `attend_explicit` trains faster than torch's fused attention."""
    return q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16 and (causal or length <= LONGEST)


def attend_explicit(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T L"],
    *,
    causal: bool,
    scale: float | None,
) -> Float[Tensor, "B H T L"]:
    """softmax(scale q k^T) v (Vaswani et al. 2017, eq. 1); G key heads serve H query heads, `scale` is K ** -0.5
    where it is None. Its derivative cannot be derived again."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(q, k, v, causal, factor)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
        # Query heads that share a key head become rows [B * G, H / G, T, K]: no key is copied for them.
        batch, heads, length, size = q.shape
        rows = (q * scale).reshape(batch * k.shape[1], -1, length, size)
        keys, v = k.flatten(0, 1).mT.contiguous(), v.flatten(0, 1)
        out = v.new_empty(*rows.shape[:3], v.shape[2])
        keep = batch * heads * length**2 * v.element_size() <= KEPT_BYTES
        kept = []
        for first, last, seen in _blocks(rows, causal):
            shares = _shares(rows[:, :, first:last], keys[:, :, :seen], first, causal)
            out[:, :, first:last] = (shares @ v[:, :seen]).view(*rows.shape[:2], last - first, -1)
            if keep:
                kept.append(shares)
        ctx.save_for_backward(rows, keys, v, *kept)
        ctx.causal, ctx.scale = causal, scale
        return out.view(batch, heads, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, keys, v, *kept = ctx.saved_tensors
        batch, heads, length, _ = gradients[0].shape
        above = gradients[0].reshape(*rows.shape[:3], -1)
        k, values = keys.mT.contiguous(), v.mT.contiguous()
        of_rows, of_k, of_v = torch.empty_like(rows), _Sum(k), _Sum(v)
        for number, (first, last, seen) in enumerate(_blocks(rows, ctx.causal)):
            mine, below = (x[:, :, first:last].flatten(1, 2) for x in (rows, above))
            shares = kept[number] if kept else _shares(rows[:, :, first:last], keys[:, :, :seen], first, ctx.causal)
            of_v.add(shares.mT @ below)
            of_shares = below @ values[:, :, :seen]
            of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            of_rows[:, :, first:last] = (of_scores @ k[:, :seen]).view(*rows.shape[:2], last - first, -1)
            of_k.add(of_scores.mT @ mine)
        of_q = of_rows.mul_(ctx.scale).view(batch, heads, length, -1)
        of_kv = (x.result().view(batch, -1, length, x.like.shape[-1]) for x in (of_k, of_v))
        return of_q, *of_kv, None, None


class _Sum:
    """Adds up the gradients that blocks of queries give to the keys they see, several in float32 at least."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.total: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """`part` is of the first keys."""
        if self.total is None and part.shape == self.like.shape:
            self.total = part
            return
        kind = torch.promote_types(part.dtype, torch.float32)
        if self.total is None:
            self.total = torch.zeros_like(self.like, dtype=kind)
        self.total = self.total.to(kind)
        self.total[:, : part.shape[1]] += part

    def result(self) -> Tensor:
        """The sum; zeros where no key was seen."""
        return torch.zeros_like(self.like) if self.total is None else self.total.to(self.like.dtype)


def _blocks(rows: Float[Tensor, "N R T K"], causal: bool) -> Iterator[tuple[int, int, int]]:
    """(first query, last query + 1, keys that they may see) of every block."""
    length = rows.shape[2]
    count = max(64, BLOCK_VALUES // max(1, rows.shape[0] * rows.shape[1] * length) // 64 * 64)
    for first in range(0, length, count):
        last = min(first + count, length)
        yield first, last, last if causal else length


def _shares(rows: Float[Tensor, "N R Q K"], keys: Float[Tensor, "N K S"], first: int, causal: bool) -> Tensor:
    """softmax(q k^T) [N, R * Q, S] of scaled queries, the first of which is token `first`."""
    scores = rows.flatten(1, 2) @ keys
    if causal:
        count = rows.shape[2]
        later = torch.ones(count, count, dtype=torch.bool, device=keys.device).triu(1)
        scores.view(*rows.shape[:3], -1)[..., first:].masked_fill_(later, float("-inf"))
    return scores.softmax(-1)
