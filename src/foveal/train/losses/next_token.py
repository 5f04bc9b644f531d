"""Next-token loss: cross-entropy of the tokens that the renderer marked as learned.

    goal = targets(batch)                          # which tokens of the pack are to be said, after which
    out = vlm(batch, at=goal.places)               # scores [N, V] only where they are needed
    total, weight = next_token_loss(out.logits, goal)

or, so that not even the scores of all rows exist at once:

    out = vlm(batch, keep=("norm",), at=goal.places[:0])
    total, weight = next_token_loss(out.kept["norm"], goal, head=vlm.language.logits)

Which tokens are learned is the renderer's knowledge (`Packed.spans`): the assistant's words with the token that ends
its turn. Qwen-VL's release also learns the frame of every turn; its chat marks that when told
`PictureChat(labels="published")`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveal.core.errors import InputError
from foveal.core.packed import Packed
from foveal.core.shapes import Float, Float32, Int64
from foveal.train.losses.weighted import Weighted

CHUNK_ROWS = 1024
"""Rows whose scores are in float32 at a time: 0.6 GB at Qwen's 152,000 words."""

CHUNK_VALUES = 2**18
"""The same on a CPU, in scores: 1 MB stays in its cache and in the hands of malloc."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a pack teaches.

    Attributes:
        places: tokens of the pack after which a learned token comes [N], ascending.
        tokens: those learned tokens [N].
        weights: how much each counts [N].
    """

    places: Int64[np.ndarray, "N"]
    tokens: Int64[np.ndarray, "N"]
    weights: Float32[np.ndarray, "N"]

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum(dtype=np.float64))


def targets(batch: Packed, weights: Float32[np.ndarray, "T"] | None = None) -> Targets:
    """The learned tokens of `batch`, without the first of each sequence: nothing comes before it.

    Args:
        weights: how much each token of the pack counts when it is to be said [T]; None: 1. Tokens of weight 0
            are left out.

    Raises:
        InputError: `weights` of another length, negative or not finite.
    """
    count = len(batch.tokens)
    if weights is None:
        weights = np.ones(count, np.float32)
    if weights.shape != (count,):
        raise InputError(f"token weights have shape {weights.shape}; the pack has {count} tokens, give one for each.")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError("token weights must be finite and not negative; mend or drop those that are not.")
    said = np.zeros(count, bool)
    for span in batch.spans:
        said[span.start : span.stop] = span.learned
    firsts = batch.starts[:-1]
    said[firsts[firsts < count]] = False  # an empty last sequence begins behind the last token
    found = np.flatnonzero(said & (weights > 0))
    return Targets(places=found - 1, tokens=batch.tokens[found], weights=weights[found].astype(np.float32))


def next_token_loss(
    rows: Float[Tensor, "N _"],
    goal: Targets,
    *,
    head: Callable[[Tensor], Tensor] | None = None,
    chunk: int = CHUNK_ROWS,
) -> Weighted:
    """Sum over learned tokens of weight x -log p(token | tokens before it), and the sum of the weights.

    Args:
        rows: scores, or with `head` hidden states, after the tokens `goal.places` [N, ...] or after all [T, ...].
        goal: see `targets`.
        head: hidden states [n, D] -> scores [n, V]. They are computed `chunk` rows at a time, and again in the
            backward pass, so that there are never more than `chunk` rows of scores.
        chunk: rows in float32 at a time, at most. The gradient of scores that are given is of their own type.

    The sum is 0, with gradients of 0, where nothing is learned: other processes wait for the backward pass.

    Raises:
        InputError: rows that are neither those of `goal.places` nor reach as far.
    """
    if chunk < 1:
        raise InputError(f"next-token loss: chunk is {chunk}; it must be at least 1 row.")
    count = len(goal.places)
    if len(rows) != count:
        if count and len(rows) <= goal.places[-1]:
            raise InputError(
                f"next-token loss: {len(rows)} rows, but {count} tokens are learned and the last stands after row "
                f"{goal.places[-1]}; pass the rows of targets(batch).places or those of all tokens."
            )
        rows = rows[torch.from_numpy(goal.places).to(rows.device)]
    wanted = torch.from_numpy(goal.tokens).to(rows.device)
    weights = torch.from_numpy(goal.weights).to(rows.device)
    if head is None:
        return Weighted(_scored(rows, wanted, weights, chunk), goal.weight)
    if not count:
        return Weighted(head(rows).float().sum(), 0.0)

    def said(part: slice) -> Tensor:
        return _scored(head(rows[part]), wanted[part], weights[part], chunk)

    sums = [
        checkpoint(said, slice(start, start + chunk), use_reentrant=False, preserve_rng_state=False)
        for start in range(0, count, chunk)
    ]
    return Weighted(torch.stack(sums).sum(), goal.weight)


def _scored(scores: Tensor, wanted: Tensor, weights: Tensor, chunk: int) -> Tensor:
    if scores.device.type == "cpu":
        chunk = max(1, min(chunk, CHUNK_VALUES // scores.shape[1]))
    return _CrossEntropy.apply(scores, wanted, weights, chunk)  # type: ignore[no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    """Weighted sum of cross-entropies; only `chunk` rows of scores [N, V] are ever in float32."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, wanted: Tensor, weights: Tensor, chunk: int) -> Tensor:
        total = torch.promote_types(scores.dtype, torch.float32)
        weights = weights.to(total)
        said = scores.new_empty(len(scores), dtype=total)
        for start in range(0, len(scores), chunk):
            part = slice(start, start + chunk)
            said[part] = scores[part].to(total).log_softmax(-1).gather(1, wanted[part, None])[:, 0]
        ctx.save_for_backward(scores, wanted, weights)
        ctx.chunk = chunk
        return -(weights * said).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        scores, wanted, weights = ctx.saved_tensors
        result = torch.empty_like(scores)
        for start in range(0, len(scores), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            shares = scores[part].to(weights.dtype).softmax(-1)
            shares[torch.arange(len(shares), device=shares.device), wanted[part]] -= 1
            result[part] = shares.mul_((weights[part] * gradients[0])[:, None])
        return result, None, None, None
