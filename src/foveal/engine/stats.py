"""What an engine says about itself."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine does and holds.

    Attributes:
        running, waiting: answers.
        blocks_in_use, blocks_cached, blocks_free: blocks of running answers, of finished ones, and the rest.
        block_tokens: tokens in a block.
        cache_bytes: memory of keys and values, both kinds.
        vision_hits, vision_misses: media whose visual tokens were known, and those that passed the tower.
        vision_bytes: visual tokens that are kept.
        prefix_tokens: tokens that did not have to be computed because an earlier sequence began alike.
        preemptions: how often an answer had to wait again.
        prompt_tokens, answer_tokens: computed and said so far.
        guessed, guessed_right: tokens of speculation, and those that were kept.
    """

    running: int
    waiting: int
    blocks_in_use: int
    blocks_cached: int
    blocks_free: int
    block_tokens: int
    cache_bytes: int
    vision_hits: int
    vision_misses: int
    vision_bytes: int
    prefix_tokens: int
    preemptions: int
    prompt_tokens: int
    answer_tokens: int
    guessed: int
    guessed_right: int
