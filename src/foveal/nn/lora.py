"""Low-rank updates beside frozen weights (LoRA, Hu et al. 2021, section 4.1): y = W x + scale * B A x.

A layer is adapted in place: it keeps its identity and the names of its parameters, and gets a list `lora` of parts.
Each part has two thin matrices of its own and updates some rows of the layer, so that a joined `qkv` can carry
updates of its thirds. Whoever reads the `weight` of an adapted linear layer, as attention with joined or absorbed
weights does, gets the weight with the update in it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.errors import ConfigError, WeightsError
from foveal.core.shapes import Float
from foveal.nn.linear import Linear, linear


class LoraPart(nn.Module):
    """The update of the rows `start` to `start + N` of a layer: scale * b @ a.

    `scale` is alpha / R, or alpha / sqrt(R) when `rslora` (Kalajdzievski 2023, "rank stabilization").
    `dropout` is the share of the update's inputs that training sets to 0.
    """

    def __init__(
        self,
        a: Float[Tensor, "R I"],
        b: Float[Tensor, "N R"],
        *,
        start: int = 0,
        alpha: float,
        rslora: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {dropout}; expected a share from 0 to less than 1.")
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.start, self.alpha, self.rslora, self.dropout = start, alpha, rslora, dropout

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def rows(self) -> int:
        return self.b.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def update(self) -> Float[Tensor, "N I"]:
        """What is added to the rows of the weight, in float32 or wider."""
        kind = torch.promote_types(self.a.dtype, torch.float32)
        return self.scale * (self.b.to(kind) @ self.a.to(kind))

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B N"]:
        x = F.dropout(x.to(self.a.dtype), self.dropout, self.training)
        return self.scale * F.linear(F.linear(x, self.a), self.b)


class LoraLayer(nn.Module):
    """What adapted layers have in common; mixed into the class of the layer."""

    plain: type[nn.Module]
    """The class without updates."""
    lora: nn.ModuleList
    merged: bool

    def begin(self, parts: Iterable[LoraPart]) -> None:
        """Takes up the parts; called once, after the layer has got its new class."""
        self.lora, self.merged = nn.ModuleList(parts).train(self.training), False

    @property
    def parts(self) -> list[LoraPart]:
        return [part for part in self.lora if isinstance(part, LoraPart)]

    @property
    def frozen(self) -> Float[Tensor, "O I"]:
        """The weight without updates (with them while merged)."""
        weight = self._parameters["weight"]
        if weight is None:
            raise WeightsError("the layer has no weight; fill the network before it is adapted.")
        return weight

    def into(self, weight: Tensor, sign: float = 1.0) -> Tensor:
        """`weight` with all updates added (taken off for a sign of -1), computed in float32 or wider."""
        kind = torch.promote_types(weight.dtype, torch.float32)
        total = weight.to(kind)
        for part in self.parts:
            update = sign * part.update().to(kind)
            total = total + self._placed(update, part.start)
        return total.to(weight.dtype)

    def _placed(self, update: Tensor, start: int) -> Tensor:
        return F.pad(update, (0, 0, start, sizes(self)[0] - start - len(update)))

    def fold(self, sign: float) -> None:
        """Writes the updates into the weight, or takes them out of it again."""
        with torch.no_grad():
            self.frozen.copy_(self.into(self.frozen, sign))

    def updated(self, x: Tensor, plain: Tensor) -> Tensor:
        """`plain`, the layer's own result for `x`, with the updates of all parts."""
        return plain if self.merged else _with_updates(self.parts, x, plain)


def _with_updates(parts: Iterable[LoraPart], x: Tensor, plain: Tensor) -> Tensor:
    width = plain.shape[-1]
    for part in parts:
        own = part(x).to(plain.dtype)
        plain = plain + (own if part.rows == width else F.pad(own, (part.start, width - part.start - part.rows)))
    return plain


class LoraLinear(LoraLayer, Linear):
    """A linear layer with updates."""

    plain = Linear

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight with the updates; inputs are never dropped here."""
        return self.frozen if self.merged else self.into(self.frozen)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return self.updated(x, linear(x, self.frozen, self.bias))

    def without(self) -> nn.Linear:
        """A plain layer with the same weight (the updates in it while merged)."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight, layer.bias = nn.Parameter(self.frozen, requires_grad=False), self.bias
        return layer.train(self.training)


class UpdatedLinear(nn.Module):
    """Updates beside a linear layer in another form (packed, quantized), for inference."""

    def __init__(self, base: nn.Module, layer: LoraLinear) -> None:
        """`base` computes what `layer` does without its updates."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.base, self.lora, self.merged = base, layer.lora, layer.merged

    @property
    def parts(self) -> list[LoraPart]:
        return [part for part in self.lora if isinstance(part, LoraPart)]

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        plain = self.base(x)
        return plain if self.merged else _with_updates(self.parts, x, plain)

    def adapted(self, layer: nn.Linear) -> LoraLinear:
        """`layer` as an adapted one with these updates."""
        return as_adapted(layer, self.parts, merged=self.merged)


def as_adapted(layer: nn.Linear, parts: Iterable[LoraPart], *, merged: bool = False) -> LoraLinear:
    """A plain linear layer, made one with updates in place."""
    layer.__class__ = LoraLinear
    adapted: Any = layer
    adapted.begin(parts)
    adapted.merged = merged
    return adapted


class LoraEmbedding(LoraLayer, nn.Embedding):
    """An embedding with an update; `a` has a column for every entry of the vocabulary, `b` a row for every feature."""

    plain = nn.Embedding

    def _placed(self, update: Tensor, start: int) -> Tensor:
        return update.T

    def forward(self, ids: Tensor) -> Tensor:
        plain = super().forward(ids)
        if self.merged:
            return plain
        for part in self.parts:
            own = part.scale * F.linear(F.embedding(ids, part.a.T), part.b)
            plain = plain + own.to(plain.dtype)
        return plain


_ADAPTED: dict[type[nn.Module], type[LoraLayer]] = {Linear: LoraLinear, nn.Embedding: LoraEmbedding}


def register(plain: type[nn.Module], adapted: type[LoraLayer]) -> None:
    """Makes layers of the class `plain` adaptable: they become `adapted`."""
    _ADAPTED[plain] = adapted


def adaptable(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that can carry updates, by name, those that already do included."""
    return {n: m for n, m in network.named_modules() if type(m) in _ADAPTED or isinstance(m, LoraLayer)}


def adapted(network: nn.Module) -> dict[str, LoraLayer]:
    """The layers that carry updates, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def sizes(layer: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of an adaptable layer; for an embedding its features and its entries."""
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, layer.num_embeddings
    return int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]


def attach(network: nn.Module, parts: Mapping[str, list[LoraPart]]) -> None:
    """Gives layers, by name, their parts. All are checked before the first is changed.

    Raises `ConfigError` for a layer that cannot be adapted or is adapted already, and `WeightsError` for parts that do
    not fit their layer.
    """
    known = dict(network.named_modules())
    for name, several in parts.items():
        layer = known.get(name)
        if layer is None or type(layer) not in _ADAPTED:
            reason = (
                "carries updates already; merge or strip them first"
                if isinstance(layer, LoraLayer)
                else (
                    "is no layer of the network"
                    if layer is None
                    else f"is a {type(layer).__name__}, which takes no updates"
                )
            )
            raise ConfigError(f"{name} {reason}.")
        rows, inputs = sizes(layer)
        for part in several:
            a, b = tuple(part.a.shape), tuple(part.b.shape)
            stop = part.start + part.rows
            if a[0] != b[1] or a[1] != inputs or stop > rows or (isinstance(layer, nn.Embedding) and b[0] != rows):
                raise WeightsError(
                    f"{name} maps {inputs} values to {rows}, but its update has A {list(a)} and "
                    f"B {list(b)} for rows {part.start} to {stop}; the adapter is of another model."
                )
    for name, several in parts.items():
        layer = known[name]
        # In place, as torch's own parametrizations do it: hooks, names and references to the layer stay valid.
        layer.__class__ = _ADAPTED[type(layer)]
        layer.begin(several)


def merge(network: nn.Module) -> None:
    """Folds all updates into their weights; `unmerge` takes them out again, up to rounding."""
    for layer in adapted(network).values():
        if not layer.merged:
            layer.fold(1.0)
            layer.merged = True


def unmerge(network: nn.Module) -> None:
    """Takes merged updates out of the weights; they are computed beside them again."""
    for layer in adapted(network).values():
        if layer.merged:
            layer.fold(-1.0)
            layer.merged = False


def strip(network: nn.Module) -> None:
    """Makes plain layers of adapted ones: with the updates if they are merged, without if not."""
    for layer in adapted(network).values():
        del layer.lora, layer.merged
        layer.__class__ = layer.plain  # type: ignore[assignment]
