"""From scores to the next token."""

import torch
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Float
from foveal.engine.request import Generation


def choose(scores: Float[Tensor, "V"], generation: Generation, banned: Tensor) -> int:
    """The next token of one answer.

    `scores` are float32 on the CPU and are changed in place. The order of the steps is the field's:
    bans, penalties, temperature, top-k, top-p, min-p.
    """
    options = generation.sampling
    if not torch.isfinite(scores).all():
        raise FovealError("the model's scores are not finite; load it with dtype='float32' or check the weights.")
    scores[banned] = -torch.inf
    if options.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*generation.prompt, *generation.ids}), dtype=torch.long)
        old = scores[seen]
        scores[seen] = torch.where(old < 0, old * options.repetition_penalty, old / options.repetition_penalty)
    if options.presence_penalty and generation.ids:
        scores[torch.tensor(sorted(set(generation.ids)))] -= options.presence_penalty
    if options.temperature == 0:
        return int(scores.argmax())
    scores = restrict(scores / options.temperature, options.top_k, options.top_p, options.min_p)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generation.random))


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
