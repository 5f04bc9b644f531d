"""LoRA (Hu et al. 2021): layers chosen by pattern learn thin updates while the weights stay as they are.

For a run of stages: `Stage(trainable=(("*.lora.*", 1e-3), ("*", None)), ...)` and
`Run(adapt=adapting(Lora(rank=16)), export=exporting("name of the model"), ...)`. `adapting` calls `apply`, and
`exporting` calls `save_adapter`, which writes PEFT's files.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from foveal.core.errors import ConfigError, neighbours
from foveal.families.adapter import open_adapter, refuse_tied, save_adapter
from foveal.families.load import Loaded
from foveal.nn.lora import LoraPart, adaptable, attach, merge, sizes, strip, unmerge

__all__ = ["Lora", "adapting", "apply", "exporting", "merge", "open_adapter", "save_adapter", "strip", "unmerge"]

T = TypeVar("T", int, float)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Which layers get updates, and what these are like.

    Attributes:
        targets: patterns (as in `Stage.trainable`) for names of linear layers such as "language.layers.*",
            "vision.*.qkv" or "adapter.*"; a parameter's name ("....weight") does too. The vocabulary's embedding and
            head are taken only by a pattern that ends in their name, as "language.embed" does.
        rank: width of the updates.
        alpha: updates are scaled by alpha / rank.
        dropout: share of an update's inputs that training sets to 0. Layers whose weight is read directly (the joined
            weights of resamplers and pooling heads, `kv_up` of latent attention) have none.
        rslora: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023), so that larger ranks learn as fast.
        ranks, alphas: (pattern, value) for layers that differ; the first match counts.
        seed: of the random halves of the updates.
    """

    targets: tuple[str, ...] = ("language.layers.*",)
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("Lora.targets is empty; name at least one pattern, such as 'language.layers.*'.")
        for rank in (self.rank, *(rank for _, rank in self.ranks)):
            if rank < 1:
                raise ConfigError(f"a rank of Lora is {rank}; it must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"Lora.dropout is {self.dropout}; expected a share from 0 to less than 1.")


def apply(network: nn.Module, lora: Lora) -> list[str]:
    """Gives the layers that `lora` names updates that do nothing yet; returns the layers' names.

    Of every update the first half is random (uniform, of variance 1 / (3 inputs)) and the second 0, so outputs stay
    bit for bit what they were. All other parameters are frozen.

    Raises `ConfigError` for a pattern that no layer matches, naming its neighbours, and for a layer that has updates.
    """
    layers = adaptable(network)
    names = chosen(layers, lora.targets)
    chosen(dict.fromkeys(names, nn.Identity()), tuple(pattern for pattern, _ in (*lora.ranks, *lora.alphas)))
    generator = torch.Generator().manual_seed(lora.seed)
    parts: dict[str, list[LoraPart]] = {}
    for name in names:
        layer = layers[name]
        if isinstance(layer, nn.Embedding):
            refuse_tied(network, name)
        rows, inputs = sizes(layer)
        rank = _value(lora.ranks, name, lora.rank)
        like = next(t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point())
        a = torch.empty(rank, inputs).uniform_(-1, 1, generator=generator) * inputs**-0.5
        part = LoraPart(
            a.to(like),
            torch.zeros(rows, rank).to(like),
            alpha=float(_value(lora.alphas, name, lora.alpha)),
            rslora=lora.rslora,
            dropout=lora.dropout,
        )
        parts[name] = [part]
    network.requires_grad_(False)
    attach(network, parts)
    return names


def adapting(lora: Lora) -> Callable[[Loaded], None]:
    """For `Run.adapt`: gives the model the updates of `lora`."""

    def adapt(loaded: Loaded) -> None:
        apply(loaded.network, lora)

    return adapt


def exporting(base: str = "", *, whole: Iterable[str] = ()) -> Callable[[Loaded, Path], None]:
    """For `Run.export`: writes the adapter alone. `base` and `whole` as for `save_adapter`."""
    names = tuple(whole)

    def export(loaded: Loaded, folder: Path) -> None:
        save_adapter(loaded.network, folder, family=loaded.family, config=loaded.config, base=base, whole=names)

    return export


def chosen(layers: dict[str, nn.Module], patterns: tuple[str, ...]) -> list[str]:
    """Names of the layers that some pattern matches, in the order of the network."""
    found: set[str] = set()
    for pattern in patterns:
        plain = pattern.removesuffix(".weight")
        mine = {n for n, layer in layers.items() if fnmatchcase(n, plain) and _meant(n, layer, plain)}
        if not mine:
            known = {re.sub(r"\.[0-9]+\.", ".*.", name) for name in layers}
            raise ConfigError(f"no layer that can be updated matches {pattern!r}; {neighbours(plain, known)}")
        found |= mine
    return [name for name in layers if name in found]


def _meant(name: str, layer: nn.Module, pattern: str) -> bool:
    """Embeddings and heads are large and often tied: no wildcard takes them by accident."""
    last = name.rpartition(".")[2]
    outer = isinstance(layer, nn.Embedding) or last == "head"
    return not outer or pattern.rpartition(".")[2] == last


def _value(table: tuple[tuple[str, T], ...], name: str, default: T) -> T:
    return next((value for pattern, value in table if fnmatchcase(name, pattern.removesuffix(".weight"))), default)
