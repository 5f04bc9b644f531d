"""Multi-head latent attention (DeepSeek-V2, section 2.1): the cache holds one latent a token, not keys and values.

    x ──▶ latent [R] | rotary key [Kr]          what is cached, for all heads together
    expanded:  latent ──up──▶ keys, values of every head, then ordinary attention       (many new tokens)
    absorbed:  queries ──up^T──▶ latent space; attention over the latents themselves     (few new tokens)

Both are the same sum in another order.
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveal.core.errors import ConfigError
from foveal.core.shapes import Float, Int
from foveal.language.cache import Cache
from foveal.language.expert_config import ExpertDecoderConfig
from foveal.nn.attention import attend_cached, attend_packed
from foveal.nn.linear import Linear
from foveal.nn.norm import RMSNorm
from foveal.nn.rope import Rotation, frequencies
from foveal.nn.yarn import yarn_frequencies

LATENT_EPS = 1e-6
"""The norms of the latents keep this eps, whatever the others have (as released)."""


class LatentAttention(nn.Module):
    """Causal attention whose keys and values of all heads come from one small latent a token."""

    plain_layers: ClassVar[tuple[str, ...]] = ("kv_up",)  # the absorbed form reads its weight

    def __init__(self, config: ExpertDecoderConfig, layer: int) -> None:
        super().__init__()
        if config.latent is None:
            raise ConfigError("latent attention needs its sizes; this configuration has none.")
        self.sizes = s = config.latent
        self.layer, self.heads, self.scale = layer, config.heads, config.scale
        d, queries = config.width, config.heads * config.head_dim
        if s.query_latent is None:
            self.q = Linear(d, queries, bias=False)
        else:
            self.q_down = Linear(d, s.query_latent, bias=False)
            self.q_norm = RMSNorm(s.query_latent, LATENT_EPS)
            self.q_up = Linear(s.query_latent, queries, bias=False)
        self.kv_down = Linear(d, s.latent + s.rotary, bias=False)
        self.kv_norm = RMSNorm(s.latent, LATENT_EPS)
        self.kv_up = Linear(s.latent, config.heads * (s.plain + s.value), bias=False)
        self.out = Linear(config.heads * s.value, d, bias=False)

    def forward(
        self, x: Float[Tensor, "T D"], rotation: Rotation, starts: Sequence[int], cache: Cache | None
    ) -> Float[Tensor, "T D"]:
        s = self.sizes
        asked = self.q(x) if s.query_latent is None else self.q_up(self.q_norm(self.q_down(x)))
        plain, turned = torch.split(asked.view(len(x), self.heads, -1), [s.plain, s.rotary], dim=-1)
        latent, key = torch.split(self.kv_down(x), [s.latent, s.rotary], dim=-1)
        latent = self.kv_norm(latent)
        turned, key = rotation(pairs_apart(turned)), rotation(pairs_apart(key[:, None]))
        if cache is None:
            k, v = self._expanded(latent, key[:, 0])
            q = torch.cat((plain, turned), dim=-1)
            return self.out(attend_packed(q, k, v, starts, causal=True, scale=self.scale).flatten(1))
        held = torch.cat((latent[:, None], key), dim=-1)
        parts = []
        for sequence, (a, b) in enumerate(itertools.pairwise(starts)):
            if a < b:
                (known,) = cache.write(self.layer, sequence, held[a:b])
                attend = self._absorbed_attention if self.absorbs(b - a) else self._expanded_attention
                parts.append(attend(plain[a:b], turned[a:b], known[0]))
        return self.out(torch.cat(parts).flatten(1))

    def absorbs(self, new: int) -> bool:
        """Whether the absorbed form multiplies less for `new` tokens, however many are known.

        Per known token and head: expanding costs R (plain + value) once, the absorbed form 2 R - plain - value
        more for each new token.
        """
        s = self.sizes
        return new * (2 * s.latent - s.plain - s.value) < s.latent * (s.plain + s.value)

    def _expanded(
        self, latent: Float[Tensor, "S R"], key: Float[Tensor, "S Q"]
    ) -> tuple[Float[Tensor, "S H K"], Float[Tensor, "S H L"]]:
        """Keys and values of every head."""
        s = self.sizes
        both = self.kv_up(latent).view(len(latent), self.heads, -1)
        plain, value = torch.split(both, [s.plain, s.value], dim=-1)
        return torch.cat((plain, key[:, None].expand(-1, self.heads, -1)), dim=-1), value

    def _expanded_attention(
        self, plain: Float[Tensor, "T H P"], turned: Float[Tensor, "T H Q"], known: Float[Tensor, "S C"]
    ) -> Float[Tensor, "T H L"]:
        k, v = self._expanded(*torch.split(known, [self.sizes.latent, self.sizes.rotary], dim=-1))
        q = torch.cat((plain, turned), dim=-1)
        return attend_cached(q, k.transpose(0, 1), v.transpose(0, 1), scale=self.scale)

    def _absorbed_attention(
        self, plain: Float[Tensor, "T H P"], turned: Float[Tensor, "T H Q"], known: Float[Tensor, "S C"]
    ) -> Float[Tensor, "T H L"]:
        """The latents are keys and values of one head that all query heads share."""
        s = self.sizes
        up = self.kv_up.weight.view(self.heads, s.plain + s.value, s.latent)
        asked = torch.einsum("thp,hpr->thr", plain, up[:, : s.plain])
        found = attend_cached(
            torch.cat((asked, turned), dim=-1), known[None], known[None, :, : s.latent], scale=self.scale
        )
        return torch.einsum("thr,hvr->thv", found, up[:, s.plain :])


def pairs_apart(x: Float[Tensor, "T H K"]) -> Float[Tensor, "T H K"]:
    """(a0 b0 a1 b1 ...) as (a0 a1 ... b0 b1 ...): neighbours turn together in the released weights, halves in ours."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)


def latent_rotary(config: ExpertDecoderConfig, positions: Int[Tensor, "A T"]) -> Rotation:
    """The rotation of the rotary part of queries and keys, for one axis of positions."""
    if config.latent is None:
        raise ConfigError("latent attention needs its sizes; this configuration has none.")
    size, yarn, device = config.latent.rotary, config.yarn, positions.device
    strength = 1.0
    if yarn is None:
        turns = frequencies(size, config.theta, device)
    else:
        turns = yarn_frequencies(
            size,
            config.theta,
            factor=yarn.factor,
            trained=yarn.trained,
            fast=yarn.fast,
            slow=yarn.slow,
            device=device,
        )
        strength = yarn.magnitude(yarn.weight) / yarn.magnitude(yarn.weight_all)
    angles = positions[0].to(torch.float32)[:, None] * turns
    both = torch.cat((angles, angles), dim=-1)[:, None]
    return Rotation(both.cos() * strength, both.sin() * strength)
