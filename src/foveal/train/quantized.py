"""Frozen weights in 4 or 8 bits, for training low-rank updates beside them (QLoRA, Dettmers et al. 2023, section 3).

    quantize(network, ("language.layers.*",))          # then
    apply(network, Lora(targets=("language.layers.*",)))

A quantized layer unpacks its weight whenever it is used, forth and back, and keeps no copy: gradients go to its inputs
only. NF4 stores 64 weights as 4-bit numbers of their largest absolute value; the 16 levels are quantiles of a normal
distribution. Double quantization stores those largest values in 8 bits again. `int8` has one scale for every row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.errors import ConfigError, WeightsError, neighbours
from foveal.nn.linear import Linear
from foveal.nn.lora import LoraLayer, register
from foveal.train.lora import chosen

Kind = Literal["nf4", "int8"]
BLOCK = 64
"""Weights that share a scale (section 3, "4-bit NormalFloat")."""
SCALE_BLOCK = 256
"""Scales that share a scale under double quantization."""


@cache
def nf4_levels() -> tuple[float, ...]:
    """The 16 levels of NF4, rising from -1 to 1 (section 3, eq. 4, and appendix E).

    Seven negative and eight positive quantiles of the normal distribution, evenly spaced in probability from one
    shared outermost one, and 0; divided by the largest.
    """
    outer = (1 - 1 / 32 + 1 - 1 / 30) / 2  # the mean of half a step of 16 levels, and of 15

    def half(levels: int) -> list[float]:
        step = (outer - 0.5) / levels
        return [NormalDist().inv_cdf(outer - step * i) for i in range(levels)]

    positive, negative = half(8), half(7)
    return tuple(v / positive[0] for v in (*(-v for v in negative), 0.0, *reversed(positive)))


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What `quantize` did: names of the layers, and bytes of all of the network's tensors before and after."""

    layers: tuple[str, ...]
    before_bytes: int
    after_bytes: int


def quantize(
    network: nn.Module, targets: Sequence[str] = ("language.layers.*",), *, kind: Kind = "nf4", double: bool = True
) -> Saved:
    """Replaces the weights of the linear layers that `targets` match (as in `Lora.targets`) by `kind`, in place.

    `double` quantizes the scales of NF4 too. Biases stay as they are; the layers' parameters are frozen.

    Raises `ConfigError` for a pattern that no linear layer matches, a layer that carries updates (quantize first), or
    an unknown kind.
    """
    if kind not in ("nf4", "int8"):
        raise ConfigError(f"kind is {kind!r}; {neighbours(str(kind), ('nf4', 'int8'))}")
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    names = chosen(dict(layers), tuple(targets))
    before = size_bytes(network)
    for name in names:
        if type(layers[name]) is not Linear:
            raise ConfigError(f"{name} is a {type(layers[name]).__name__}; quantize before updates are applied.")
    for name in names:
        layer: Any = layers[name]
        weight = layer.weight.detach()
        layer.requires_grad_(False)
        del layer.weight
        layer.__class__ = QuantizedLinear
        layer.pack(weight, kind, double)
    return Saved(layers=tuple(names), before_bytes=before, after_bytes=size_bytes(network))


def size_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers()))


class QuantizedLinear(nn.Module):
    """A linear layer with a packed weight. `quantize` makes it of an `nn.Linear`, which keeps its other attributes."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    kind: Kind
    codes: Tensor
    scales: Tensor
    scale_steps: Tensor
    scale_mean: Tensor

    def pack(self, weight: Tensor, kind: Kind, double: bool) -> None:
        """Takes up the weight [O, I]."""
        if not bool(weight.isfinite().all()):
            raise WeightsError("a weight that is to be quantized is not finite; the checkpoint is damaged.")
        self.kind, self.stored = kind, weight.dtype
        dense = weight.float()
        if kind == "int8":
            scales = dense.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
            self.register_buffer("codes", (dense / scales[:, None]).round().to(torch.int8))
            self.register_buffer("scales", scales)
            return
        blocks = _blocks(dense, BLOCK)
        scales = blocks.abs().amax(1)
        if double:
            self.register_buffer("scale_mean", scales.mean())
            rest = _blocks(scales - scales.mean(), SCALE_BLOCK)
            steps = rest.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
            self.register_buffer("scale_steps", steps)
            self.register_buffer("scales", (rest / steps[:, None]).round().to(torch.int8).flatten()[: len(scales)])
        else:
            self.register_buffer("scales", scales)
        self.register_buffer("codes", _to_nf4(blocks / self._block_scales().clamp_min(1e-30)[:, None]))

    def _block_scales(self) -> Tensor:
        """The scale of every block of NF4."""
        if self.scales.dtype != torch.int8:
            return self.scales
        rest = _blocks(self.scales.float(), SCALE_BLOCK) * self.scale_steps[:, None]
        return (rest.flatten()[: len(self.scales)] + self.scale_mean).clamp_min(0)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] as it is computed with."""
        if self.kind == "int8":
            return (self.codes.float() * self.scales[:, None]).to(dtype)
        levels = torch.tensor(nf4_levels(), dtype=torch.float32, device=self.codes.device)
        pairs = torch.stack((self.codes >> 4, self.codes & 15), dim=-1).view(-1, BLOCK)
        flat = (levels[pairs.int()] * self._block_scales()[:, None]).flatten()
        return flat[: self.out_features * self.in_features].view(self.out_features, self.in_features).to(dtype)

    @property
    def weight(self) -> Tensor:
        """The weight [O, I], for whoever reads it."""
        return self.dense(self.stored)

    def linear(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class LoraQuantized(LoraLayer, QuantizedLinear):
    """A quantized layer with updates."""

    plain = QuantizedLinear

    @property
    def frozen(self) -> Tensor:
        return self.dense(self.stored)

    @property
    def weight(self) -> Tensor:
        """The unpacked weight with the updates."""
        return self.into(self.frozen)

    def fold(self, sign: float) -> None:
        raise ConfigError(
            "updates cannot be merged into quantized weights without losing them in the rounding; save the adapter and "
            "merge it into the full checkpoint: foveal convert --merge ADAPTER MODEL OUT."
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.updated(x, self.linear(x))


register(QuantizedLinear, LoraQuantized)


class _Product(torch.autograd.Function):
    """x W^T with a weight that is unpacked again for the gradient instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense(grads[0].dtype), None


def _blocks(values: Tensor, size: int) -> Tensor:
    """All values in rows of `size`, the last filled up with zeros."""
    flat = values.flatten()
    return F.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _to_nf4(blocks: Tensor) -> Tensor:
    """Numbers of the nearest levels, two in a byte, of values from -1 to 1."""
    levels = torch.tensor(nf4_levels(), dtype=torch.float32, device=blocks.device)
    numbers = torch.bucketize(blocks, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).flatten()
    return numbers[0::2] << 4 | numbers[1::2]
