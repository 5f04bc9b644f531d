"""Opened networks in 4 or 8 bits."""

from typing import Any

import torch
from torch import nn

from foveal.core.config import read_json
from foveal.core.errors import ConfigError
from foveal.engine.prepare import prepare
from foveal.families.load import Loaded
from foveal.families.quantize import HEADS, Quantization, chosen, settings
from foveal.families.quantized import HEAD_KEY
from foveal.nn.joined import Joint
from foveal.nn.quantized import rounded
from foveal.nn.quantized_linear import QuantizedLinear
from foveal.weights.pages import give_back
from foveal.weights.quantized import KEY


def quantized(loaded: Loaded, quantize: str | Quantization | None) -> Loaded:
    """The same with its network quantized: as `quantize` says, or as its folder does; in place.

    Raises `ConfigError` for a network that is to be quantized twice.
    """
    published = read_json(loaded.folder / "config.json")
    stored = published.get(KEY) is not None
    if quantize is not None:
        if stored:
            raise ConfigError(
                f"{loaded.folder} holds quantized weights; leave quantize out, or open what they were made of."
            )
        quantize_network(loaded.network, settings(quantize))
    elif stored:
        join_quantized(loaded.network)
        if published.get(HEAD_KEY):
            give_back()
            prepare(loaded.network, _head_only)
    if stored or quantize is not None:
        give_back()
    return loaded


@torch.no_grad()
def quantize_network(network: nn.Module, how: Quantization) -> None:
    """Rounds the linear layers that `how` covers, one after the other; the full weights leave memory on the way.

    Biases stay as they are. For inference; what is left over, `prepare` takes as ever.

    Raises `ConfigError` where a part holds no linear layer, or no group size fits.
    """
    layers, group = chosen(network, how)
    del layers  # they would keep the full weights

    def replace(name: str, layer: nn.Linear) -> nn.Module | None:
        if name in HEADS:
            return _rounded(layer, how.head, None) if how.head else None
        return _rounded(layer, how.bits, group) if how.covers(name) else None

    prepare(network, replace)


def _rounded(layer: nn.Linear, bits: int, group: int | None) -> QuantizedLinear:
    return QuantizedLinear(rounded(layer.weight, bits=bits, group=group or layer.in_features), layer.bias)


def _head_only(name: str, layer: nn.Linear) -> nn.Module | None:
    return _rounded(layer, 8, None) if name in HEADS else None


def join_quantized(network: nn.Module) -> None:
    """Joins projections of one input whose weights came quantized in the same way."""
    for owner in list(network.modules()):
        for name, parts in getattr(owner, "joins", {}).items():
            layers: list[Any] = [owner._modules.get(part) for part in parts]
            if all(isinstance(layer, QuantizedLinear) for layer in layers):
                whole = QuantizedLinear.join(layers)
                if whole is not None:
                    for part in parts:
                        delattr(owner, part)
                    rows = {part: layer.out_features for part, layer in zip(parts, layers, strict=True)}
                    setattr(owner, name, Joint(whole.train(owner.training), rows))
