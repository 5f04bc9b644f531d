"""The causal language model of the line: RMSNorm, grouped-query attention with rotary positions, SwiGLU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.core.errors import ConfigError
from foveal.core.shapes import Float, Int
from foveal.language.cache import Cache
from foveal.nn.attention import attend_cached, attend_packed
from foveal.nn.keep import Keep
from foveal.nn.mlp import GatedMLP
from foveal.nn.norm import RMSNorm
from foveal.nn.rope import Rotation, text_rotation


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


class Attention(nn.Module):
    """Grouped-query causal attention (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.layer, self.head_dim = layer, c.head_dim
        self.q = nn.Linear(c.width, c.heads * c.head_dim, bias=c.qkv_bias)
        self.k = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.out = nn.Linear(c.heads * c.head_dim, c.width, bias=False)

    def forward(
        self, x: Float[Tensor, "T D"], rotation: Rotation, starts: Sequence[int], cache: Cache | None
    ) -> Float[Tensor, "T D"]:
        q, k, v = (part(x).view(len(x), -1, self.head_dim) for part in (self.q, self.k, self.v))
        q, k = rotation(q), rotation(k)
        if cache is None:
            return self.out(attend_packed(q, k, v, starts, causal=True).flatten(1))
        parts = []
        for sequence, (a, b) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            if a < b:
                parts.append(attend_cached(q[a:b], *cache.write(self.layer, sequence, k[a:b], v[a:b])))
        return self.out(torch.cat(parts).flatten(1))


class DecoderLayer(nn.Module):
    """Pre-norm layer: attention, then MLP."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width, config.eps)
        self.attention = Attention(config, layer)
        self.norm2 = RMSNorm(config.width, config.eps)
        self.mlp = GatedMLP(config.width, config.mlp_width)

    def forward(
        self, x: Float[Tensor, "T D"], rotation: Rotation, starts: Sequence[int], cache: Cache | None
    ) -> Float[Tensor, "T D"]:
        x = x + self.attention(self.norm1(x), rotation, starts, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Token embedding, layers, final norm and vocabulary head (which is the embedding when `tied`)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.depth))
        self.norm = RMSNorm(config.width, config.eps)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab, bias=False)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        positions: Int[Tensor, "A T"],
        starts: Sequence[int],
        *,
        cache: Cache | None = None,
        keep: Keep | None = None,
    ) -> Float[Tensor, "T D"]:
        """Embeddings of sequences end to end -> final hidden states, normalised.

        With a cache, the tokens continue its sequences: `starts` has one entry more than the cache has
        sequences, and a sequence may get no token at all.
        """
        c = self.config
        rotation = text_rotation(positions, head_dim=c.head_dim, theta=c.theta, section=c.section).to(x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, starts, cache)
            if keep:
                keep.offer(f"layers.{index}", x)
        if cache:
            cache.advance([b - a for a, b in zip(starts[:-1], starts[1:], strict=True)])
        x = self.norm(x)
        if keep:
            keep.offer("norm", x)
        return x

    def logits(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T V"]:
        """Scores of every vocabulary entry as the next token."""
        weight = self.embed.weight if self.head is None else self.head.weight
        return hidden @ weight.T

    def new_cache(self, sequences: int, *, capacity: int = 64) -> Cache:
        """An empty cache with room for `capacity` tokens a sequence before it grows."""
        return Cache(sequences, depth=self.config.depth, capacity=capacity)
