"""Bounds of an engine. No torch, so that commands can read them."""

from dataclasses import dataclass

from foveal.core.errors import InputError
from foveal.language.config import BLOCK_TOKENS

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What an engine may use.

    Attributes:
        max_requests: answers in the making at once; further ones wait.
        max_waiting: requests that may wait; one more is refused with `EngineFull`. None is no bound.
        step_tokens: tokens that pass the decoder in one step. Longer prompts are computed over several steps, beside
            the answers that are already being written.
        cache_bytes: bound on keys and values, of running sequences and of finished ones that are kept. None is
            1 GiB, or one sequence of the model's whole context where that is more; where it is taken as a whole (see
            `graphs`), at most half of the device's free memory.
        block_tokens: tokens in a block, the unit in which that memory is counted and prefixes are found again.
        prefix_cache: keep the keys and values of finished sequences for later ones that begin alike.
        vision_cache_bytes: bound on the visual tokens of media that are kept for later requests; 0 keeps none.
        vision_tokens: patches of several media that pass the tower at once; a larger medium passes alone.
        speculate: tokens that are guessed at a time from what prompt and answer already say; 0 is off. The answers
            do not depend on it.
        graphs: record steps in which answers are only written and play them again (CUDA graphs), with keys and values
            in memory that is taken as a whole. None does so where the device and the family can, which only CUDA
            devices do; True refuses where it cannot be done.
    """

    max_requests: int = 64
    max_waiting: int | None = None
    step_tokens: int = 2048
    cache_bytes: int | None = None
    block_tokens: int = BLOCK_TOKENS
    prefix_cache: bool = True
    vision_cache_bytes: int = 256 * MIB
    vision_tokens: int = 16384
    speculate: int = 0
    graphs: bool | None = None

    def __post_init__(self) -> None:
        least = {
            "max_requests": 1,
            "max_waiting": 0,
            "step_tokens": 1,
            "cache_bytes": 1,
            "block_tokens": 1,
            "vision_cache_bytes": 0,
            "vision_tokens": 1,
            "speculate": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is None and name in ("max_waiting", "cache_bytes"):
                continue
            if type(value) is not int or value < bound:
                raise InputError(f"{name} is {value!r}; expected a whole number of at least {bound}.")
        if self.graphs is not None and type(self.graphs) is not bool:
            raise InputError(f"graphs is {self.graphs!r}; expected True, False or None.")
        if type(self.prefix_cache) is not bool:
            raise InputError(f"prefix_cache is {self.prefix_cache!r}; expected True or False.")
