"""Guided attention: a head is told what to look at (after Liu et al. 2016, "Neural machine translation with supervised
attention").

A small decoder learns to find the picture of a name last of all: until some head compares names with visual tokens,
nothing that follows can use it, and the head gets hardly any gradient before that. One extra loss tells two heads.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveal.core.errors import InputError
from foveal.core.shapes import Bool, Float, Int64
from foveal.language.attention import Attention
from foveal.language.decoder import Decoder, DecoderLayer


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Q tokens of a pack and, for each, which of the pack's T tokens a head should look at.

    Attributes:
        queries: indices of tokens, rising [Q].
        wanted: true where the head should look; only tokens of the query's own sequence up to itself [Q, T].
    """

    queries: Int64[np.ndarray, "Q"]
    wanted: Bool[np.ndarray, "Q T"]


def guide_loss(
    decoder: Decoder,
    layer: int,
    heads: Sequence[int],
    x: Float[Tensor, "T D"],
    positions: Tensor,
    starts: Sequence[int],
    guide: Guide,
) -> tuple[Tensor, float]:
    """Minus the logarithm of the share of attention that goes where it should, and that share: means over queries.

    `x` is what `layer` gets, i.e. the output of the layer before (`VLM.forward(keep=...)` returns it). A query
    without a wanted token does not count. Raises `InputError` if `layer` has no plain attention or lacks one of
    `heads`.
    """
    block = decoder.layers[layer]
    if not isinstance(block, DecoderLayer) or not isinstance(attention := block.attention, Attention):
        raise InputError(f"layer {layer} has no plain attention, the only kind that can be guided.")
    q, k, _ = attention.project(block.norm1(x))
    rotation = decoder.rotary(decoder.config, positions).to(x.dtype)
    if max(heads) >= q.shape[1]:
        raise InputError(f"heads {list(heads)} are to be guided, but the layer has {q.shape[1]}.")
    shared = q.shape[1] // k.shape[1]
    q, k = rotation(q)[:, list(heads)], rotation(k)[:, [h // shared for h in heads]]
    losses, shares = [], []
    for start, stop in itertools.pairwise(starts):
        mine = (guide.queries >= start) & (guide.queries < stop) & guide.wanted.any(1)
        rows = torch.from_numpy(guide.queries[mine])
        if not len(rows):
            continue
        scores = torch.einsum("qhk,thk->hqt", q[rows].float(), k[start:stop].float()) * q.shape[-1] ** -0.5
        later = torch.arange(start, stop) > rows[:, None]
        weights = scores.masked_fill(later, float("-inf")).log_softmax(-1)
        other = ~torch.from_numpy(guide.wanted[mine, start:stop])
        mass = weights.masked_fill(other, float("-inf")).logsumexp(-1)
        losses.append(-mass.flatten())
        shares.append(mass.detach().exp().flatten())
    if not losses:
        return x.sum() * 0.0, 0.0
    return torch.cat(losses).mean(), float(torch.cat(shares).mean())
