"""Attention over sequences that lie end to end, without padding and without a square mask over the pack.

Boundaries stay on the host as plain integers, so no step waits for an accelerator to learn a shape.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.shapes import Float
from foveal.nn.explicit import attend_explicit, is_faster

# Rows of queries that see a partial mask at a time: a chunk's mask is [MASK_ROWS, keys], never square.
MASK_ROWS = 512


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

    G key heads serve H query heads (H divisible by G). Neighbouring sequences of equal length are
    computed as one batch. Products are multiplied by `scale`, or by K ** -0.5.
    """
    parts = []
    groups = list(_equal_neighbours(starts))
    # Split and not sliced: the gradient of a slice is as large as the whole pack.
    rows = [torch.split(x, [length * count for length, count in groups]) for x in (q, k, v)]
    for (length, count), *own in zip(groups, *rows, strict=True):
        qs, ks, vs = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in own)
        if is_faster(q, length, causal=causal):
            out = attend_explicit(qs, ks, vs, causal=causal, scale=scale)
        else:
            out = F.scaled_dot_product_attention(
                qs, ks, vs, is_causal=causal and length > 1, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else v.new_empty(0, q.shape[1], v.shape[2])


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
