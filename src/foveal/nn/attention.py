"""Attention over sequences that lie end to end, without padding and without a square mask over the pack.

Boundaries stay on the host as plain integers, so no step waits for an accelerator to learn a shape.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.shapes import Float
from foveal.nn.explicit import attend_explicit, is_faster
from foveal.nn.varlen import attend_ragged, kernel

# Rows of queries that see a partial mask at a time: a chunk's mask is [MASK_ROWS, keys], never square.
MASK_ROWS = 512

BLOCK_ROWS = 1024
"""Queries that see all keys at a time where attention is computed in blocks."""


def attend_packed(
    q: Float[Tensor, "T H K"],
    k: Float[Tensor, "T G K"],
    v: Float[Tensor, "T G L"],
    starts: Sequence[int],
    *,
    causal: bool,
    scale: float | None = None,
) -> Float[Tensor, "T H L"]:
    """Every sequence attends to itself only; `starts` holds the B + 1 boundaries.

    G key heads serve H query heads (H divisible by G). Where the device has a kernel for ragged packs, all are one
    call; elsewhere neighbouring sequences of equal length are. Products are multiplied by `scale`, or by K ** -0.5.
    """
    which = kernel(q.device, q.dtype, q.shape[-1], v.shape[-1]) if len(starts) > 2 else None
    if which is not None:
        return attend_ragged(which, q, k, v, starts, causal=causal, scale=scale)
    parts = []
    groups = list(_equal_neighbours(starts))
    # Split and not sliced: the gradient of a slice is as large as the whole pack.
    rows = [torch.split(x, [length * count for length, count in groups]) for x in (q, k, v)]
    for (length, count), *own in zip(groups, *rows, strict=True):
        qs, ks, vs = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in own)
        if is_faster(q, length, causal=causal):
            out = attend_explicit(qs, ks, vs, causal=causal, scale=scale)
        elif not causal and in_blocks(q, k, length):
            out = _blocked(qs, ks, vs, scale=scale)
        else:
            out = F.scaled_dot_product_attention(
                qs, ks, vs, is_causal=causal and length > 1, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else v.new_empty(0, q.shape[1], v.shape[2])


def in_blocks(q: Tensor, k: Tensor, length: int) -> bool:
    """Whether matrix products with a softmax between them beat torch's fused attention over a whole picture.

    They do in bfloat16 on processors without a tile unit (AMX): 1.4 times at 1,024 patches and 1.6 times at 5,476, head
    size 80, on two cores of an EPYC Zen 4. With one, torch's is twice as fast as they are, and it is the more exact.
    """
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[1] == k.shape[1]
    return plain and length >= BLOCK_ROWS and not torch.is_grad_enabled() and not has_tiles()


@cache
def has_tiles() -> bool:
    """Whether this processor has a unit for products of tiles, as torch tells."""
    return bool(torch.cpu.get_capabilities().get("amx_tile", False))


def _blocked(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T L"], *, scale: float | None
) -> Float[Tensor, "B H T L"]:
    """softmax(q k^T / sqrt(K)) v for one head and `BLOCK_ROWS` queries at a time: scores [BLOCK_ROWS, T] at most.

    Scores are rounded to the type of the queries before the softmax.
    """
    batch, heads, length, size = q.shape
    factor = size**-0.5 if scale is None else scale
    out = v.new_empty(batch, length, heads, v.shape[-1])
    for number in range(batch):
        for head in range(heads):
            queries = q[number, head] * factor
            keys, values = k[number, head].T.contiguous(), v[number, head].contiguous()
            for first in range(0, length, BLOCK_ROWS):
                rows = slice(first, first + BLOCK_ROWS)
                out[number, rows, head] = (queries[rows] @ keys).softmax(-1) @ values
    return out.transpose(1, 2)


def attend_cached(
    q: Float[Tensor, "T H K"], k: Float[Tensor, "G S K"], v: Float[Tensor, "G S L"], *, scale: float | None = None
) -> Float[Tensor, "T H L"]:
    """The last T of S tokens of one sequence attend causally to all S, whose keys are heads first."""
    new, heads, size = q.shape
    groups, seen, _ = k.shape
    if new == 1:
        # Query heads that share a key head become rows: no key is copied per query head.
        rows = q.view(groups, heads // groups, size)
        out = F.scaled_dot_product_attention(rows[None], k[None], v[None], scale=scale)
        return out[0].reshape(1, heads, v.shape[2])
    gqa = heads != groups
    qs = q.transpose(0, 1)[None]
    if new == seen:
        out = F.scaled_dot_product_attention(qs, k[None], v[None], is_causal=True, scale=scale, enable_gqa=gqa)
        return out[0].transpose(0, 1)
    keys = torch.arange(seen, device=q.device)
    parts = []
    for first in range(0, new, MASK_ROWS):
        last = min(first + MASK_ROWS, new)
        visible = seen - new + last
        rows = torch.arange(seen - new + first, visible, device=q.device)
        mask = keys[:visible] <= rows[:, None]
        out = F.scaled_dot_product_attention(
            qs[:, :, first:last],
            k[None, :, :visible],
            v[None, :, :visible],
            attn_mask=mask,
            scale=scale,
            enable_gqa=gqa,
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _equal_neighbours(starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Groups neighbouring sequences of one length: (length, count); empty ones are left out."""
    index, last = 0, len(starts) - 1
    while index < last:
        length, count = starts[index + 1] - starts[index], 1
        while index + count < last and starts[index + count + 1] - starts[index + count] == length:
            count += 1
        if length:
            yield length, count
        index += count
