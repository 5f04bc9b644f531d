"""The generation loop: one ragged prefill, then one token a step for all unfinished sequences."""

from collections.abc import Iterator, Sequence

import torch

from foveal.core.errors import ContextError
from foveal.core.packed import Packed
from foveal.engine.request import Generation, Sampling
from foveal.engine.sampling import choose
from foveal.families.vlm import VLM

DEFAULT_TOKENS = 512


def start(
    batch: Packed, samplings: Sequence[Sampling], context_tokens: int, default_tokens: int = DEFAULT_TOKENS
) -> list[Generation]:
    """One `Generation` a sequence; raises `ContextError` when prompt and answer cannot fit.

    Where `max_tokens` is None an answer ends after `default_tokens` or at the end of the context.
    """
    made = []
    for index, (sampling, length) in enumerate(zip(samplings, batch.lengths.tolist(), strict=True)):
        room = context_tokens - length
        wanted = sampling.max_tokens
        if room < 1 or (wanted or 0) > room:
            raise ContextError(
                f"sequence {index}: a prompt of {length} tokens and an answer of {wanted or 1} pass the context of "
                f"{context_tokens}; shorten the prompt, lower max_pixels or frames, or lower max_tokens."
            )
        first = int(batch.starts[index])
        made.append(
            Generation(
                sampling=sampling,
                prompt=batch.tokens[first : first + length].tolist(),
                max_tokens=wanted or min(default_tokens, room),
            )
        )
    return made


@torch.inference_mode()
def steps(
    network: VLM,
    batch: Packed,
    generations: Sequence[Generation],
    *,
    stops: frozenset[int],
    banned: frozenset[int],
    chunk: int | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Runs all sequences to their ends; each step yields (sequence, new token) of those still running.

    A consumer may set `finish_reason` of a generation between steps to end it. `chunk` bounds the tokens
    that the prefill runs through the decoder at a time.
    """
    forbidden = torch.tensor(sorted(banned), dtype=torch.long)
    cache = network.language.new_cache(len(batch), capacity=int(batch.lengths.max()) + 64)
    scores = network(batch, cache=cache, chunk=chunk, at=batch.starts[1:] - 1).logits
    held = list(range(len(batch)))  # sequence numbers, in the order of the cache
    while held:
        rows = scores.float().cpu()
        emitted = []
        for row, sequence in zip(rows, held, strict=True):
            token = choose(row, generations[sequence], forbidden)
            generations[sequence].accept(token, stops)
            emitted.append((sequence, token))
        yield emitted
        running = [i for i, sequence in enumerate(held) if generations[sequence].finish_reason is None]
        if len(running) < len(held):
            cache.keep_only(running)
            held = [held[i] for i in running]
        if held:
            scores = network.step(batch, held, [generations[sequence].ids[-1] for sequence in held], cache)
