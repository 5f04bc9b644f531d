"""Rounding the linear layers of a network to 4 or 8 bits: which ones, and to what."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from foveal.core.errors import ConfigError, neighbours
from foveal.nn.quantized import BITS, Codes, common_group, rounded

KINDS = {"int4": 4, "int8": 8}
GROUP = 128
"""Inputs of a 4-bit weight that share a scale, where the sizes of the layers allow it."""
HEADS = ("language.head", "language.tied_head")


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Which layers are rounded, and how.

    Attributes:
        bits: 4 or 8.
        parts: subtrees whose linear layers are rounded: "language", "vision", "adapter", or patterns such as
            "language.layers.*.mlp.*".
        group: inputs that share a scale; None: 128 (or less, if the sizes want it) for 4 bits, whole rows for 8.
        head_bits: of the vocabulary's head, with a scale a row, when all of "language" is rounded; 0: it stays.
    """

    bits: int
    parts: tuple[str, ...] = ("language",)
    group: int | None = None
    head_bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ConfigError(f"quantization to {self.bits!r} bits; 4 and 8 are computed.")
        if self.head_bits not in (0, 8):
            raise ConfigError(f"head_bits is {self.head_bits!r}; 8, or 0 to leave the head, is expected.")
        if not self.parts:
            raise ConfigError("parts is empty; name what is to be quantized, such as 'language'.")
        if self.group is not None and self.group < 1:
            raise ConfigError(f"group is {self.group}; a number above 0 is expected.")

    @property
    def head(self) -> int:
        """Bits of the head: `head_bits` where the whole language model is rounded; 0: it stays."""
        return self.head_bits if "language" in self.parts else 0

    def covers(self, name: str) -> bool:
        """Whether a layer lies in one of the parts. The head has its own setting."""
        return name not in HEADS and any(
            name == part or name.startswith(f"{part}.") or fnmatchcase(name, part) for part in self.parts
        )


def settings(quantize: str | Quantization) -> Quantization:
    """Settings by name ("int4" or "int8"), or as they are. Raises `ConfigError` for another name."""
    if isinstance(quantize, Quantization):
        return quantize
    if quantize not in KINDS:
        raise ConfigError(f"quantize is {quantize!r}; {neighbours(str(quantize), KINDS)}")
    return Quantization(bits=KINDS[quantize])


def parsed(kind: str | None, parts: str | None, group: int | None = None) -> Quantization | None:
    """Settings from the words of a command line; `parts` are joined by commas.

    Raises `ConfigError` for an unknown kind, and for parts or a group without a kind.
    """
    if kind is None:
        if parts is not None or group is not None:
            raise ConfigError("parts and group sizes belong to --quantize; add --quantize int4 or int8.")
        return None
    named = None if parts is None else tuple(part.strip() for part in parts.split(",") if part.strip())
    made = replace(settings(kind), group=group)
    return made if named is None else replace(made, parts=named)


def linear_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """All linear layers but those whose weight their owner reads itself (its `plain_layers`)."""
    for name, owner in network.named_modules():
        kept = getattr(owner, "plain_layers", ())
        for child, layer in owner.named_children():
            if isinstance(layer, nn.Linear) and child not in kept:
                yield (f"{name}.{child}" if name else child), layer


def chosen(network: nn.Module, how: Quantization) -> tuple[dict[str, nn.Linear], int | None]:
    """The layers that `how` covers, and the group size that suits all of them (None: whole rows).

    Raises `ConfigError` where a part holds no linear layer, or no group size fits.
    """
    every = dict(linear_layers(network))
    layers = {name: layer for name, layer in every.items() if how.covers(name)}
    for part in how.parts:
        alone = Quantization(bits=how.bits, parts=(part,))
        if not any(alone.covers(name) for name in every):
            known = sorted({name.partition(".")[0] for name in every})
            raise ConfigError(f"no linear layer lies in {part!r}; {neighbours(part, known)}")
    if how.bits == 8 and how.group is None:
        return layers, None
    return layers, common_group(sorted({layer.in_features for layer in layers.values()}), how.group or GROUP)


@torch.no_grad()
def plain_codes(network: nn.Module, how: Quantization) -> dict[str, Codes]:
    """The codes of all covered layers, by name; every weight is rounded to the nearest, nothing else is looked at."""
    layers, group = chosen(network, how)
    return {
        name: rounded(layer.weight.detach(), bits=how.bits, group=group or layer.in_features)
        for name, layer in layers.items()
    }
