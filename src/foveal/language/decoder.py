"""The causal language model of the line: RMSNorm, grouped-query attention with rotary positions, SwiGLU."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from foveal.core.shapes import Float, Int
from foveal.language.attention import Attention
from foveal.language.cache import Cache
from foveal.language.config import DecoderConfig, DecoderSizes
from foveal.language.one_call import Whole
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear, linear
from foveal.nn.mlp import GatedMLP
from foveal.nn.norm import RMSNorm
from foveal.nn.rope import Rotation, text_rotation

Part = Callable[[Any, int], nn.Module]
"""(configuration, number of the layer) -> a part of that layer."""


def gated_mlp(config: DecoderConfig, layer: int) -> nn.Module:  # noqa: ARG001
    return GatedMLP(config.width, config.mlp_width)


def rotary(config: DecoderConfig, positions: Int[Tensor, "A T"]) -> Rotation:
    """The rotation of every token, by contiguous sections of frequencies for each axis of positions."""
    return text_rotation(positions, head_dim=config.head_dim, theta=config.theta, section=config.section)


class DecoderLayer(nn.Module):
    """Pre-norm layer: attention, then MLP."""

    def __init__(self, config: DecoderSizes, layer: int, attention: Part, mlp: Part) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width, config.eps)
        self.attention = attention(config, layer)
        self.norm2 = RMSNorm(config.width, config.eps)
        self.mlp = mlp(config, layer)
        self._whole = Whole()

    def forward(
        self, x: Float[Tensor, "T D"], rotation: Rotation, starts: Sequence[int], cache: Cache | None
    ) -> Float[Tensor, "T D"]:
        done = None if cache is None else self._whole(self, x, rotation, starts, cache)
        if done is not None and done.ends:
            return done.x
        x = x + self.attention(self.norm1(x), rotation, starts, cache) if done is None else done.x
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Token embedding, layers, final norm and vocabulary head (which is the embedding when `tied`).

    Args:
        config: sizes; a family with parts of its own may bring a configuration of its own.
        attention: makes a layer's attention, called as `Attention` is.
        mlp: makes a layer's feed-forward part, [T, D] -> [T, D].
        rotary: positions [A, T] -> what attention rotates queries and keys with.
    """

    def __init__(
        self,
        config: DecoderSizes,
        *,
        attention: Part = Attention,
        mlp: Part = gated_mlp,
        rotary: Callable[[Any, Tensor], Rotation] = rotary,
    ) -> None:
        super().__init__()
        self.config, self.rotary = config, rotary
        self.embed = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config, i, attention, mlp) for i in range(config.depth))
        self.norm = RMSNorm(config.width, config.eps)
        self.head = None if config.tied else Linear(config.width, config.vocab, bias=False)
        self.tied_head: nn.Module | None = None  # a head of its own form with the embedding's values, for inference

    def forward(
        self,
        x: Float[Tensor, "T D"],
        positions: Int[Tensor, "A T"],
        starts: Sequence[int],
        *,
        cache: Cache | None = None,
        keep: Keep | None = None,
        deep: Sequence[Float[Tensor, "T D"]] = (),
    ) -> Float[Tensor, "T D"]:
        """Embeddings of sequences end to end -> final hidden states, normalised.

        With a cache, the tokens continue its sequences: `starts` has one entry more than the cache has
        sequences, and a sequence may get no token at all. `deep[i]` is added to the result of layer i
        (which is kept as it was before).
        """
        rotation = self.rotary(self.config, positions).to(x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, starts, cache)
            if keep:
                keep.offer(f"layers.{index}", x)
            if index < len(deep):
                x = x + deep[index]
        if cache is not None:
            cache.advance([b - a for a, b in itertools.pairwise(starts)])
        x = self.norm(x)
        if keep:
            keep.offer("norm", x)
        return x

    def logits(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T V"]:
        """Scores of every vocabulary entry as the next token."""
        head = self.head if self.tied_head is None else self.tied_head
        return linear(hidden, self.embed.weight) if head is None else head(hidden)

    def new_cache(self, sequences: int, *, capacity: int = 64) -> Cache:
        """An empty cache with room for `capacity` tokens a sequence before it grows."""
        return Cache(sequences, depth=self.config.depth, capacity=capacity)
