"""Sizes of decoders with latent attention and experts (DeepSeek-V2). No torch, so that planning is quick."""

import math
from dataclasses import dataclass

from foveal.core.errors import ConfigError
from foveal.language.config import DecoderConfig
from foveal.nn.routing import Routing


@dataclass(frozen=True, kw_only=True)
class LatentSizes:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): what a head is made of.

    Attributes:
        latent: width of the latent from which all heads' keys and values are made.
        query_latent: width of the queries' own latent; None makes them from the input directly.
        plain: part of a query or key without positions.
        rotary: part of a query or key with rotary positions; all heads share that of the key.
        value: width of a value.
    """

    latent: int
    query_latent: int | None
    plain: int
    rotary: int
    value: int

    def __post_init__(self) -> None:
        if self.rotary % 2:
            raise ConfigError(f"latent attention: the rotary part is {self.rotary} wide; rotation turns pairs.")


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Positions stretched by `factor` (see `foveal.nn.yarn`).

    Attributes:
        trained: positions of the model before it was stretched.
        fast, slow: turns over `trained` positions above which a frequency is kept, below which it is stretched.
        weight: of the magnitude by which rotated queries and keys are multiplied, relative to `weight_all`.
        weight_all: of the magnitude by whose square all products are multiplied; 0: not at all.
    """

    factor: float
    trained: int = 4096
    fast: float = 32.0
    slow: float = 1.0
    weight: float = 1.0
    weight_all: float = 0.0

    def magnitude(self, weight: float) -> float:
        """By how much products should grow (YaRN, section 3.4)."""
        return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Which layers have experts, and how wide they are.

    Attributes:
        routing: how experts are chosen.
        width: hidden width of an expert.
        shared: how many experts every token passes; they are one MLP of that many times the width.
        first: the first layer that may have experts; those before it are dense.
        every: of the layers from `first` on, those whose number is divisible by it have experts.
    """

    routing: Routing
    width: int
    shared: int = 0
    first: int = 0
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class ExpertDecoderConfig:
    """Sizes of a decoder as DeepSeek-V2's.

    Attributes:
        latent: latent attention; None: ordinary attention with `kv_heads` and half-split rotary positions.
        yarn: stretched positions of latent attention.
        mixture: experts; None: every layer is dense.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocab: int
    latent: LatentSizes | None = None
    yarn: Yarn | None = None
    mixture: Mixture | None = None
    eps: float = 1e-6
    theta: float = 10000.0
    tied: bool = False
    context: int = 4096

    def __post_init__(self) -> None:
        if self.latent is None:
            if self.width % self.heads or self.heads % self.kv_heads:
                raise ConfigError(
                    f"{self.heads} query heads must divide the width {self.width} and share {self.kv_heads} key heads."
                )
            if self.yarn is not None:
                raise ConfigError("stretched positions (yarn) belong to latent attention; this model has none.")
            if self.head_dim % 2:
                raise ConfigError(f"heads are {self.head_dim} wide; rotation turns pairs.")

    @property
    def head_dim(self) -> int:
        """Width of a query or key."""
        return self.width // self.heads if self.latent is None else self.latent.plain + self.latent.rotary

    @property
    def ordinary(self) -> DecoderConfig:
        """The sizes of a decoder with ordinary attention, for the parts that it shares with others."""
        return DecoderConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            vocab=self.vocab,
            eps=self.eps,
            theta=self.theta,
            section=(self.head_dim // 2,),
            qkv_bias=False,
            tied=self.tied,
            context=self.context,
        )

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied by in latent attention."""
        yarn = self.yarn
        stretch = 1.0 if yarn is None or not yarn.weight_all else yarn.magnitude(yarn.weight_all) ** 2
        return float(self.head_dim**-0.5) * stretch

    def mixed(self, layer: int) -> bool:
        """Whether a layer has experts."""
        mixture = self.mixture
        return mixture is not None and layer >= mixture.first and layer % mixture.every == 0

    @property
    def cache_values(self) -> int:
        """Numbers that the cache holds for one token over all layers; latent attention expands none of them."""
        latent = self.latent
        if latent is None:
            return 2 * self.depth * self.kv_heads * self.head_dim
        return self.depth * (latent.latent + latent.rotary)

    @property
    def parameters(self) -> int:
        """Numbers that the decoder learns."""
        d = self.width
        layers = sum(2 * d + self._attention + self._mlp(self.mixed(i)) for i in range(self.depth))
        return (1 if self.tied else 2) * self.vocab * d + layers + d

    @property
    def _attention(self) -> int:
        d, sizes = self.width, self.latent
        if sizes is None:
            q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
            return (q + 2 * kv) * d + q * d
        queries = self.heads * self.head_dim
        rank = sizes.query_latent
        asking = d * queries if rank is None else d * rank + rank + rank * queries
        shared = d * (sizes.latent + sizes.rotary) + sizes.latent
        return asking + shared + self.heads * (sizes.latent * (sizes.plain + sizes.value) + sizes.value * d)

    def _mlp(self, mixed: bool) -> int:
        d, mixture = self.width, self.mixture
        if mixture is None or not mixed:
            return 3 * d * self.mlp_width
        experts = mixture.routing.experts
        return (experts + mixture.shared) * 3 * d * mixture.width + experts * (d + mixture.routing.biased)

    def work_bytes(self, tokens: int, item_bytes: int) -> int:
        """Peak memory of the intermediate results of a prefill without gradients, weights and cache aside.

        The widest place is a dense layer's MLP, attention, or the experts. Beside each stand the embeddings, the
        layer's input, what attention made of it and its norm, and the cosines and sines of all tokens.
        """
        d = self.width
        turns = 2 * (self.head_dim if self.latent is None else self.latent.rotary)
        dense = [i for i in range(self.depth) if not self.mixed(i)]
        widest: list[float] = [self._attention_work]
        if dense:
            # The input of the first layer is the embeddings.
            widest.append((3 if dense == [0] else 4) * d + 3 * self.mlp_width)
        if len(dense) < self.depth and self.mixture is not None:
            widest.append(4 * d + self._expert_work(self.mixture, item_bytes))
        return int(tokens * item_bytes * (max(widest) + turns))

    @property
    def _attention_work(self) -> int:
        """Numbers a token: queries, keys, values, their rotated copies, and the result of every head."""
        d, sizes = self.width, self.latent
        if sizes is None:
            q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
            return 3 * d + 2 * q + 2 * kv + max(d, q)
        head = 4 * sizes.plain + 4 * sizes.rotary + 2 * sizes.value
        return 3 * d + self.heads * head + 2 * (sizes.latent + sizes.rotary)

    def _expert_work(self, mixture: Mixture, item_bytes: int) -> float:
        """Numbers a token: K copies before and after the experts, or the results weighed in float32; then who chose."""
        d, k = self.width, mixture.routing.chosen
        weighed = k * d + (0 if item_bytes == 4 else (k + 1) * d * 4 / item_bytes)
        inside = max(2 * k * d + 3 * mixture.width, weighed, d + 3 * mixture.shared * mixture.width)
        return inside + (28 * k + 4 * mixture.routing.experts) / item_bytes
