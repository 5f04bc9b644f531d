"""Several linear layers over the same input as one, for inference: one product with all rows of their weights.

A module says which of its layers may be joined, and what it reads of a layer beside its result:

    class Attention(nn.Module):
        joins = {"qkv": ("q", "k", "v")}       # attribute of the joined layer <- attributes of its parts

Joined parts are taken out of the module; `apart` puts them back with exactly their values.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from foveal.nn.linear import Linear
from foveal.nn.lora import LoraLayer, LoraLinear, LoraPart, as_adapted


class Joint(nn.Module):
    """The joined layer, and the rows of each of its parts: x -> one result a part."""

    def __init__(self, whole: nn.Module, parts: Mapping[str, int]) -> None:
        super().__init__()
        self.whole, self.parts = whole, dict(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.whole(x).split(list(self.parts.values()), dim=-1)


def joinable(owner: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What `owner` may join and has not joined yet: the attribute, and the names of the parts.

    Parts are plain linear layers or ones with updates, all with a bias or none.
    """
    joins: Mapping[str, tuple[str, ...]] = getattr(owner, "joins", {})
    for name, parts in joins.items():
        layers = [owner._modules.get(part) for part in parts]
        if all(type(layer) in (Linear, LoraLinear) for layer in layers):
            biases: set[bool] = {layer.bias is None for layer in layers}  # type: ignore[union-attr]
            if len(biases) == 1:
                yield name, parts


def join(owner: nn.Module, name: str, parts: Sequence[str]) -> None:
    """Makes one layer of several; `owner` loses the parts and gets a `Joint`."""
    layers: list[Any] = [getattr(owner, part) for part in parts]
    weights = [layer.frozen if isinstance(layer, LoraLayer) else layer.weight for layer in layers]
    rows = [layer.out_features for layer in layers]
    whole = _linear(
        torch.cat(list(weights)), torch.cat([i.bias for i in layers]) if layers[0].bias is not None else None
    )
    moved = [
        _moved(part, start)
        for layer, start in zip(layers, [0, *accumulate(rows)][:-1], strict=True)
        if isinstance(layer, LoraLayer)
        for part in layer.parts
    ]
    if moved:
        whole = as_adapted(whole, moved, merged=next(i.merged for i in layers if isinstance(i, LoraLayer)))
    for part in parts:
        delattr(owner, part)
    setattr(owner, name, Joint(whole.train(owner.training), dict(zip(parts, rows, strict=True))))


def apart(owner: nn.Module, name: str) -> None:
    """Undoes `join`."""
    joint = getattr(owner, name)
    whole: Any = joint.whole
    parts: list[LoraPart] = whole.parts if isinstance(whole, LoraLayer) else []
    weight = whole.frozen if isinstance(whole, LoraLayer) else whole.weight
    delattr(owner, name)
    setattr(owner, name, None)
    start = 0
    order = list(joint.parts)
    for part, rows in joint.parts.items():
        bias = None if whole.bias is None else whole.bias.detach()[start : start + rows].clone()
        layer = _linear(weight.detach()[start : start + rows].clone(), bias)
        own = [_moved(p, -start) for p in parts if start <= p.start < start + rows]
        if own:
            layer = as_adapted(layer, own, merged=whole.merged)
        setattr(owner, part, layer.train(owner.training))
        start += rows
    # The names of tensors keep their order: the parts stand where they stood, before all others.
    rest = [n for n in owner._modules if n not in order]
    for other in [*order, *rest]:
        owner._modules[other] = owner._modules.pop(other)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return layer


def _moved(part: LoraPart, by: int) -> LoraPart:
    return LoraPart(
        part.a.detach(),
        part.b.detach(),
        start=part.start + by,
        alpha=part.alpha,
        rslora=part.rslora,
        dropout=part.dropout,
    ).requires_grad_(False)
