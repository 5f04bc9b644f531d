"""Sizes of language models. No torch, so that planning is quick."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from foveal.core.errors import ConfigError

BLOCK_TOKENS = 32
"""Memory for keys and values is taken and counted in blocks of so many tokens, unless an engine is told otherwise."""


@runtime_checkable
class DecoderSizes(Protocol):
    """What every decoder's configuration states, whatever its layers are made of."""

    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def eps(self) -> float: ...
    @property
    def tied(self) -> bool: ...
    @property
    def context(self) -> int: ...

    @property
    def cache_values(self) -> int:
        """Numbers that the cache holds for one token over all layers."""
        ...

    @property
    def parameters(self) -> int:
        """Numbers that the decoder learns."""
        ...

    def work_bytes(self, tokens: int, item_bytes: int) -> int:
        """Peak memory of the intermediate results of a prefill without gradients, weights and cache aside."""
        ...


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a decoder. `section` splits the head_dim / 2 rotary frequencies among the position axes."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab: int
    eps: float = 1e-6
    theta: float = 1_000_000.0
    section: tuple[int, ...] = (16, 24, 24)
    qkv_bias: bool = True
    tied: bool = False
    context: int = 32768

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} query heads cannot share {self.kv_heads} key heads; use a divisor.")
        if 2 * sum(self.section) != self.head_dim:
            raise ConfigError(
                f"rotary section {list(self.section)} sums to {sum(self.section)}, "
                f"expected half the head size {self.head_dim}."
            )

    @property
    def cache_values(self) -> int:
        """Numbers that the cache holds for one token over all layers."""
        return 2 * self.depth * self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Numbers that the decoder learns; a tied head is the embedding and counts once."""
        d, q, kv = self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = (q + 2 * kv) * (d + self.qkv_bias) + q * d
        layer = 2 * d + attention + 3 * d * self.mlp_width
        return (1 if self.tied else 2) * self.vocab * d + self.depth * layer + d

    def work_bytes(self, tokens: int, item_bytes: int) -> int:
        """Peak memory of the intermediate results of a prefill without gradients, weights and cache aside.

        The widest place is either a layer's MLP (the embeddings, the layer's input twice, the norm's output,
        and three results of the hidden width) or the end of attention (the embeddings, the layer's input, the norm's
        output; queries, keys, values and the result, and that in another place or projected), with the cosines and
        sines of all tokens.
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widest = 3 * self.width + max(self.width + 3 * self.mlp_width, 2 * q + 2 * kv + max(self.width, q))
        return tokens * item_bytes * (widest + 2 * self.head_dim)
