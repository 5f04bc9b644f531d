"""A model that says what a test wants, through the real engine."""

from collections.abc import Sequence

import torch

import foveal


def say(vlm: foveal.Model, words: Sequence[str | int], *, again: bool = False) -> None:
    """Makes `vlm` answer with these words: texts, special tokens by name, or ids; then the end of the turn.

    `again` starts over after that, for one question after the other.
    """
    tokenizer = vlm.processor.tokenizer
    ids: list[int] = []
    for word in words:
        if isinstance(word, int):
            ids.append(word)
        elif word in tokenizer.special_names:
            ids.append(tokenizer.special(word))
        else:
            ids += tokenizer.encode_text(word)
    script = [*ids, vlm.processor.end_of_turn]
    said = 0

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal said
        scores = torch.zeros(len(hidden), vlm.config.language.vocab)
        scores[:, script[said % len(script) if again else min(said, len(script) - 1)]] = 99.0
        said += 1
        return scores

    vlm.network.language.logits = logits  # type: ignore[method-assign]
