"""Adapters in PEFT's files on the networks of families: attached, and taken off again for saving."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.core.errors import ConfigError, WeightsError, neighbours
from foveal.families.base import Family
from foveal.families.load import name_map
from foveal.nn.lora import LoraLayer, LoraPart, adaptable, adapted, attach, sizes
from foveal.weights.checkpoint import some
from foveal.weights.hub import locate
from foveal.weights.names import NameMap, Place
from foveal.weights.peft import CONFIG, Adapter, Thin, expects, read_adapter, write_adapter
from foveal.weights.read import share, unfit


def open_adapter(network: nn.Module, adapter: str | Path, *, family: Family, config: Any) -> list[str]:
    """Gives `network` the updates in an adapter's folder (or hub name); returns the names of the adapted layers.

    The updates take the type and device of the weights that they change. Tensors that the adapter trained whole
    replace those of the network.

    Raises `HubError`, `ConfigError`, `WeightsError`; nothing is changed then.
    """
    folder = locate(adapter)
    if not (folder / CONFIG).exists():
        raise ConfigError(f"{folder} has no {CONFIG}; pass the folder of an adapter, and the model by its own name.")
    names = name_map(family, family.layout(config))
    found = read_adapter(folder, names)
    layers = adaptable(network)
    parts: dict[str, list[LoraPart]] = {}
    for thin in found.thin:
        ours = thin.place.ours.removesuffix(".weight")
        layer = layers.get(ours)
        if (
            layer is None
            or thin.place.transposed
            or thin.place.ones
            or thin.embedding != isinstance(layer, nn.Embedding)
        ):
            raise WeightsError(
                f"{folder} updates {thin.module}, which this model does not have as a layer of that kind."
            )
        if isinstance(layer, nn.Embedding):
            refuse_tied(network, ours)
        rows = sizes(layer)[0] // thin.place.shares
        if len(thin.b) != rows:
            raise WeightsError(
                f"{folder}: {thin.module} has B {list(thin.b.shape)}, expected {rows} rows; "
                "the adapter is of another model."
            )
        like = next(t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point())
        parts.setdefault(ours, []).append(
            LoraPart(
                thin.a.to(like, copy=True),
                thin.b.to(like, copy=True),
                start=thin.place.share * rows,
                alpha=thin.alpha,
                rslora=found.rslora,
                dropout=found.dropout,
            )
        )
    if missing := sorted(_wanted(network, found, names) - {(t.place.ours, t.place.share) for t in found.thin}):
        listed = some([ours for ours, _ in missing])
        raise WeightsError(f"{folder} lacks the updates of {len(missing)} layers that {CONFIG} names: {listed}.")
    replaced = _whole(network, found, folder)
    attach(network, parts)
    with torch.no_grad():
        for target, tensor in replaced:
            target.copy_(tensor)
    return sorted(parts)


def save_adapter(
    network: nn.Module,
    folder: str | Path,
    *,
    family: Family,
    config: Any,
    base: str = "",
    whole: Iterable[str] = (),
    nested: bool = True,
) -> None:
    """Writes the updates of `network` to `folder`, which PEFT opens too.

    Args:
        base: name of the model that was adapted, for whoever opens the adapter.
        whole: our names of parameters that were trained whole; they are written beside the updates.
        nested: whether paths are those of today's modules (`model.language_model.layers`) or the published ones
            (`model.layers`), for families that have two spellings.

    Raises `WeightsError` when an updated layer has no published path of its own, or the folder cannot be written.
    """
    names = name_map(family, family.layout(config))
    thin: list[Thin] = []
    layers = adapted(network)
    for ours, layer in layers.items():
        for part in layer.parts:
            thin += _cut(ours, layer, part, names)
    state = network.state_dict(keep_vars=True)
    full: dict[str, tuple[Place, Tensor]] = {}
    for name in whole:
        if name not in state:
            raise ConfigError(f"{name!r} is no parameter of the network; {neighbours(name, state)}")
        refuse_tied(network, name.rpartition(".")[0])
        for published, place in (names.sources(name) or {}).items():
            full[published] = place, share(state[name].detach(), place)
    first = next((part for layer in layers.values() for part in layer.parts), None)
    adapter = Adapter(
        thin=tuple(thin),
        whole=full,
        dropout=first.dropout if first else 0.0,
        rslora=first.rslora if first else False,
        base=base,
        nested=nested,
    )
    write_adapter(Path(folder), adapter, names)


def refuse_tied(network: nn.Module, layer: str) -> None:
    """Raises `ConfigError` for an embedding that is the head's weight too: other libraries would update it once."""
    parent = network.get_submodule(layer.rpartition(".")[0])
    if isinstance(network.get_submodule(layer), nn.Embedding) and getattr(parent, "head", layer) is None:
        raise ConfigError(
            f"{layer} is the weight of the vocabulary head too, so an update of the embedding alone could not be "
            "merged; leave it out, or untie the two first."
        )


def _cut(ours: str, layer: LoraLayer, part: LoraPart, names: NameMap) -> Iterator[Thin]:
    """The update of a part as those of the published layers that its rows belong to."""
    embedding = isinstance(layer, nn.Embedding)
    for published, place in (names.sources(f"{ours}.weight") or {}).items():
        if not published.endswith(".weight") or place.transposed or place.ones:
            break
        rows = sizes(layer)[0] // place.shares
        first, last = place.share * rows, (place.share + 1) * rows
        start, stop = max(first, part.start), min(last, part.start + part.rows)
        if start < stop and stop - start < rows:
            raise WeightsError(f"{ours}: an update covers a piece of {published} only, which PEFT's files cannot say.")
        if start < stop:
            b = part.b[start - part.start : stop - part.start]
            module = published.removesuffix(".weight")
            yield Thin(module=module, place=place, a=part.a, b=b, alpha=part.alpha, embedding=embedding)
    else:
        return
    raise WeightsError(f"{ours} is published as {names.published(f'{ours}.weight')}, which PEFT's files cannot update.")


def _wanted(network: nn.Module, adapter: Adapter, names: NameMap) -> set[tuple[str, int]]:
    """Our weights, and which share of each, that the adapter's settings name."""
    if not adapter.complete:
        return set()
    found: set[tuple[str, int]] = set()
    for ours, layer in adaptable(network).items():
        if adapter.targets == "all-linear" and isinstance(layer, nn.Embedding):
            continue
        for published, place in (names.sources(f"{ours}.weight") or {}).items():
            plain = published.endswith(".weight") and not (place.transposed or place.ones)
            if plain and expects(adapter, names, published.removesuffix(".weight")):
                found.add((place.ours, place.share))
    return found


def _whole(network: nn.Module, adapter: Adapter, folder: Path) -> list[tuple[Tensor, Tensor]]:
    """The parts of our tensors that the adapter's whole tensors replace."""
    state = network.state_dict(keep_vars=True)
    pairs = []
    for published, (place, tensor) in adapter.whole.items():
        target = state.get(place.ours)
        if target is None:
            raise WeightsError(f"{folder} replaces {published}, which this model does not have (or has tied).")
        refuse_tied(network, place.ours.rpartition(".")[0])
        problem = unfit(target, place)
        into = target if problem else share(target.detach(), place)
        if problem or into.shape != tensor.shape:
            raise WeightsError(
                f"{folder}: {published} has shape {list(tensor.shape)}, expected {list(into.shape)}; "
                "the adapter is of another model."
            )
        pairs.append((into, tensor))
    return pairs
