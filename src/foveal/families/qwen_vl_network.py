"""The parts of Qwen-VL's network that no other family has; `qwen_vl` builds it from them and from shared ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from foveal.core.packed import Packed
from foveal.core.shapes import Float, Int, Int64
from foveal.families.vlm import VLM
from foveal.language.cache import Cache
from foveal.language.decoder import Decoder
from foveal.nn.attention import attend_packed
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear
from foveal.nn.rope import Rotation, frequencies
from foveal.vision.vit import VisionAttention

if TYPE_CHECKING:
    from foveal.families.qwen_vl import StretchedConfig


@dataclass(frozen=True)
class StretchedRotation(Rotation):
    """Rotation of the first features of a head, in float32 whatever the model's type, and the queries' factors.

    `scale` [T, 1, 1] is logn attention's, or None where that is off.
    """

    scale: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "StretchedRotation":
        """Angles stay float32, as released; only the factors take the model's type."""
        return StretchedRotation(self.cos, self.sin, None if self.scale is None else self.scale.to(dtype))

    def __call__(self, x: Float[Tensor, "T H K"]) -> Float[Tensor, "T H K"]:
        size = self.cos.shape[-1]
        if size == x.shape[-1]:
            return super().__call__(x)
        return torch.cat((super().__call__(x[..., :size]), x[..., size:]), dim=-1)

    def query(self, x: Float[Tensor, "T H K"]) -> Float[Tensor, "T H K"]:
        """Rotates queries and multiplies them by their factors."""
        turned = self(x)
        return turned if self.scale is None else turned * self.scale


def stretch_limits(config: "StretchedConfig") -> list[int]:
    """Lengths of prompts, each of which has to be passed for the next larger alpha."""
    return [config.trained << n for n in range(32) if config.trained << n < config.context] if config.ntk else []


def stretched_rotation(config: "StretchedConfig", positions: Int[Tensor, "2 T"]) -> StretchedRotation:
    """The rotation of tokens at places `positions[0]` in sequences whose prompts have `positions[1]` tokens.

    Dynamic NTK: a prompt of L tokens, more than the c tokens of training, turns with the base
    theta * alpha ** (d / (d - 2)), where alpha = 2 ** (ceil(log2(L / c)) + 1) - 1. What is added to the prompt
    later keeps its alpha, because the keys before it are turned already. Logn: the query of token i > c, counted
    from 1, is multiplied by log(i) / log(c). A prompt length of 0 stands for training, in which both are off.
    """
    places, prompts = positions
    size, trained, device = 2 * config.section[0], config.trained, positions.device
    limits = stretch_limits(config)
    alphas = [1, *(2 ** (n + 2) - 1 for n in range(len(limits)))]
    tables = [frequencies(size, config.theta * alpha ** (size / (size - 2)), device) for alpha in alphas]
    # Numbers and not a tensor of them: no step waits for one to be copied to an accelerator.
    level = sum(((prompts > limit).long() for limit in limits), start=torch.zeros_like(prompts))
    angles = places[:, None].to(torch.float32) * torch.stack(tables)[level]
    both = torch.cat((angles, angles), dim=-1)[:, None]
    scale = None
    if config.logn:
        factors = (places + 1).to(torch.float32).log() / float(np.log(trained))
        scale = factors.masked_fill((places < trained) | (prompts == 0), 1.0)[:, None, None]
    return StretchedRotation(both.cos(), both.sin(), scale)


class StretchedAttention(nn.Module):
    """Causal attention with one fused projection to queries, keys and values, whose queries may be scaled."""

    fixed_shapes: ClassVar[bool] = True

    def __init__(self, config: "StretchedConfig", layer: int) -> None:
        super().__init__()
        c = config
        self.layer, self.heads = layer, c.heads
        self.qkv = Linear(c.width, 3 * c.heads * c.head_dim, bias=c.qkv_bias)
        self.out = Linear(c.heads * c.head_dim, c.width, bias=False)

    def forward(
        self, x: Float[Tensor, "T D"], rotation: StretchedRotation, starts: Sequence[int], cache: Cache | None
    ) -> Float[Tensor, "T D"]:
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        q, k = rotation.query(q), rotation(k)
        if cache is None:
            return self.out(attend_packed(q, k, v, starts, causal=True).flatten(1))
        return self.out(cache.attend(self.layer, q, k, v, starts).flatten(1))


class StretchedDecoder(Decoder):
    """The decoder with dynamic NTK and logn attention, both of which are off in training mode."""

    def __init__(self, config: "StretchedConfig") -> None:
        super().__init__(config, attention=StretchedAttention, rotary=stretched_rotation)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        positions: Int[Tensor, "2 T"],
        starts: Sequence[int],
        *,
        cache: Cache | None = None,
        keep: Keep | None = None,
        deep: Sequence[Float[Tensor, "T D"]] = (),
    ) -> Float[Tensor, "T D"]:
        """See `Decoder.forward`; `positions` are places and prompt lengths."""
        if self.training:
            positions = torch.stack((positions[0], torch.zeros_like(positions[1])))
        return super().forward(x, positions, starts, cache=cache, keep=keep, deep=deep)


class HeadwiseAttention(VisionAttention):
    """A tower's attention whose projection holds q, k and v of the first head, then of the second, and so on."""

    def forward(
        self, x: Float[Tensor, "P D"], rotation: Rotation | None, starts: Sequence[int]
    ) -> Float[Tensor, "P D"]:
        q, k, v = self.qkv(x).view(len(x), self.heads, 3, -1).unbind(2)
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        return self.out(attend_packed(q, k, v, starts, causal=False).flatten(1))


class QwenVL(VLM):
    """Tower, resampler and decoder; later tokens keep the length of their prompt."""

    def see(self, batch: Packed, keep: Keep | None = None) -> Float[Tensor, "M D"]:
        """See `VLM.see`; the resampler looks at the pictures' grids, too."""
        features = self.vision(torch.from_numpy(batch.patches).to(self.device), batch.grids, keep)
        tokens = self.adapter(features, batch.grids, keep)
        if keep:
            keep.offer("vision", features)
            keep.offer("adapter", tokens)
        return tokens

    def places(self, batch: Packed, sequences: Sequence[int], lengths: Sequence[int]) -> Int64[np.ndarray, "A B"]:
        """Place and prompt length of the next token of some sequences, which have `lengths` tokens by now."""
        places = np.asarray(lengths, np.int64) + batch.deltas[list(sequences)]
        return np.stack((places, batch.positions[1, batch.starts[list(sequences)]]))

    def marks(self, positions: Int64[np.ndarray, "A T"]) -> Int64[np.ndarray, "A T"]:
        """Places, and which alpha the keys turn with; prompts of other lengths with the same alpha leave the same."""
        places, prompts = positions
        limits = np.array(stretch_limits(cast("StretchedConfig", self.language.config)), dtype=np.int64)
        return np.stack((places, (prompts[:, None] > limits).sum(-1)))
