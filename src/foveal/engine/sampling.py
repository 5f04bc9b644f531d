"""From scores to the next token."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Bool, Float
from foveal.engine.request import Generation, Sampling
from foveal.nn.native import rows


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A token, and the log-probabilities that were asked for; see `foveal.engine.request.Event`."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def is_plain(options: Sampling) -> bool:
    """Whether the best token is all that is asked for."""
    penalties = (options.repetition_penalty - 1, options.presence_penalty, options.frequency_penalty)
    return options.temperature == 0 and options.logprobs is None and not any(penalties)


def best(scores: Float[Tensor, "R V"], banned: Tensor) -> list[int | None]:
    """The best allowed token of every row, computed where the scores are; None where they are not finite."""
    if rows.suits(scores):
        found = rows.largest(scores)
        if not {*found} & {*banned.tolist()}:  # as good as ever: what is banned is rarely likely
            return [token if token >= 0 else None for token in found]
    scores = scores.float()
    low, high = torch.aminmax(scores, dim=-1)  # one pass; what is no number comes through
    finite = (low > -torch.inf) & (high < torch.inf)
    scores = scores.index_fill(-1, banned.to(scores.device), -torch.inf)
    tokens = torch.where(finite, scores.argmax(-1), -1).tolist()
    return [token if token >= 0 else None for token in tokens]


def pick(
    scores: Float[Tensor, "V"],
    generation: Generation,
    banned: Tensor,
    allowed: Bool[np.ndarray, "_"] | None = None,
) -> Choice:
    """The next token of one answer with its log-probabilities. `scores` are changed in place; see `choose`."""
    count = generation.sampling.logprobs
    if count is None:
        return Choice(token=choose(scores, generation, banned, allowed))
    known = scores.log_softmax(-1)
    token = choose(scores, generation, banned, allowed)
    values, ids = known.topk(min(count, len(known)))
    return Choice(token=token, logprob=float(known[token]), top=tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def choose(
    scores: Float[Tensor, "V"],
    generation: Generation,
    banned: Tensor,
    allowed: Bool[np.ndarray, "_"] | None = None,
) -> int:
    """The next token of one answer.

    `scores` are float32 on the CPU and are changed in place. `allowed` says which ids a constraint lets through; it
    may be shorter than `scores`. The order of the steps is the field's: bans, penalties, temperature, top-k, top-p,
    min-p.
    """
    options = generation.sampling
    if not torch.isfinite(scores).all():
        raise not_finite()
    scores[banned] = -torch.inf
    if allowed is not None:
        size = min(len(allowed), len(scores))
        scores[:size].masked_fill_(torch.from_numpy(~allowed[:size]), -torch.inf)
        scores[size:] = -torch.inf
        if not torch.isfinite(scores).any():
            raise FovealError("the constraint allows no token here; its grammar has no way on.")
    if options.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*generation.prompt, *generation.ids}), dtype=torch.long)
        old = scores[seen]
        scores[seen] = torch.where(old < 0, old * options.repetition_penalty, old / options.repetition_penalty)
    if generation.ids and (options.presence_penalty or options.frequency_penalty):
        counts = Counter(generation.ids)
        often = torch.tensor([*counts.values()], dtype=scores.dtype)
        scores[torch.tensor([*counts])] -= options.presence_penalty + options.frequency_penalty * often
    if options.temperature == 0:
        return int(scores.argmax())
    scores = restrict(scores / options.temperature, options.top_k, options.top_p, options.min_p)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generation.random))


def not_finite() -> FovealError:
    """What to say when a model's scores are no numbers."""
    return FovealError("the model's scores are not finite; load it with dtype='float32' or check the weights.")


def restrict(scores: Float[Tensor, "V"], top_k: int, top_p: float, min_p: float) -> Float[Tensor, "V"]:
    """Sets the scores of tokens outside top-k, top-p and min-p to minus infinity; the best one always stays."""
    if 0 < top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ranked, order = scores.sort(descending=True)
        probability = ranked.softmax(-1)
        # A token stays while the more probable ones before it have not reached top_p.
        outside = probability.cumsum(-1) - probability >= top_p
        outside[0] = False
        scores = scores.index_fill(0, order[outside], -torch.inf)
    if min_p > 0:
        probability = scores.softmax(-1)
        scores = scores.masked_fill(probability < min_p * probability.max(), -torch.inf)
    return scores
