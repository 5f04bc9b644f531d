"""Attention of decoders."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.language.cache import Cache
from foveal.language.config import DecoderConfig
from foveal.nn.attention import attend_packed
from foveal.nn.joined import Joint
from foveal.nn.linear import Linear
from foveal.nn.norm import RMSNorm
from foveal.nn.rope import Rotation


class Attention(nn.Module):
    """Grouped-query causal attention (Ainslie et al. 2023)."""

    fixed_shapes: ClassVar[bool] = True  # its steps can be recorded: see `foveal.language.fixed`
    joins: ClassVar[Mapping[str, tuple[str, ...]]] = {"qkv": ("q", "k", "v")}

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.layer, self.head_dim = layer, c.head_dim
        self.q = Linear(c.width, c.heads * c.head_dim, bias=c.qkv_bias)
        self.k = Linear(c.width, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v = Linear(c.width, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.out = Linear(c.heads * c.head_dim, c.width, bias=False)
        self.qkv: Joint | None = None  # takes the place of q, k and v in inference

    def project(
        self, x: Float[Tensor, "T D"]
    ) -> tuple[Float[Tensor, "T H K"], Float[Tensor, "T G K"], Float[Tensor, "T G K"]]:
        """Queries, keys and values of every head, before rotation."""
        parts = (self.q(x), self.k(x), self.v(x)) if self.qkv is None else self.qkv(x)
        q, k, v = (part.view(len(x), -1, self.head_dim) for part in parts)
        return q, k, v

    def forward(
        self, x: Float[Tensor, "T D"], rotation: Rotation, starts: Sequence[int], cache: Cache | None
    ) -> Float[Tensor, "T D"]:
        q, k, v = self.project(x)
        q, k = rotation(q), rotation(k)
        if cache is None:
            return self.out(attend_packed(q, k, v, starts, causal=True).flatten(1))
        return self.out(cache.attend(self.layer, q, k, v, starts).flatten(1))


class NormedAttention(Attention):
    """Attention whose queries and keys are normalised head by head before they turn (Qwen3)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.q_norm = RMSNorm(config.head_dim, config.eps)
        self.k_norm = RMSNorm(config.head_dim, config.eps)

    def project(
        self, x: Float[Tensor, "T D"]
    ) -> tuple[Float[Tensor, "T H K"], Float[Tensor, "T G K"], Float[Tensor, "T G K"]]:
        """Queries, keys and values of every head, before rotation."""
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v
