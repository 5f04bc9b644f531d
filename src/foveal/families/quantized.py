"""Opening and writing folders whose linear layers are quantized."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveal.core.errors import ConfigError, WeightsError
from foveal.core.packed import Packed
from foveal.families.awq import aware_codes
from foveal.families.base import Family
from foveal.families.quantize import Quantization, plain_codes
from foveal.families.vlm import VLM
from foveal.nn.linear import Linear
from foveal.nn.quantized import Codes, joined
from foveal.nn.quantized_linear import QuantizedLinear
from foveal.processing.processor import Processor
from foveal.weights.checkpoint import Checkpoint, TensorInfo, some
from foveal.weights.names import NameMap, Place
from foveal.weights.pages import give_back
from foveal.weights.quantized import Layout, Stored, codes_of, packed_tensors, shape_of, split, written_config
from foveal.weights.read import fill, stored_tensor

HEAD_KEY = "_foveal_quantize_head"
"""Key of config.json: bits to which the vocabulary's head is rounded when the folder is opened. The layout keeps the
head as it was, since libraries do not read a quantized embedding."""


def outline(checkpoint: Checkpoint, layout: Layout) -> Checkpoint:
    """The checkpoint as if nothing were quantized: names and shapes, for choosing a name map."""
    plain, layers = split(checkpoint, layout)
    tensors = dict(plain.tensors)
    for stored in layers:
        file = next(iter(stored.parts.values())).file
        tensors[stored.weight] = TensorInfo(name=stored.weight, file=file, dtype="BF16", shape=shape_of(stored, layout))
        bias = f"{stored.weight.removesuffix('weight')}bias"
        if bias in tensors and not _some(stored_tensor(tensors[bias])):
            del tensors[bias]  # GPTQ's tools write one of zeros for layers that have none
    return Checkpoint(folder=checkpoint.folder, tensors=tensors)


def fill_quantized(
    network: nn.Module,
    checkpoint: Checkpoint,
    layout: Layout,
    names: NameMap,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Fills a network on the meta device; layers that are quantized in the checkpoint become `QuantizedLinear`.

    As strict as `fill`: every quantized layer has one place, every parameter is filled once. A bias of zeros beside a
    layer that has none is passed over.

    Raises `WeightsError` for layers that are unknown, are no linear layers here, or have another shape.
    """
    plain, layers = split(checkpoint, layout)
    tensors = dict(plain.tensors)
    homes: dict[str, list[tuple[Place, Stored]]] = {}
    unknown = []
    for stored in layers:
        place = names.place(stored.weight)
        owner = None if place is None else _linear(network, place)
        if place is None or owner is None:
            unknown.append(stored.weight)
            continue
        homes.setdefault(place.ours, []).append((place, stored))
        bias = f"{stored.weight.removesuffix('weight')}bias"
        if bias in tensors and owner.bias is None and not _some(stored_tensor(tensors[bias])):
            del tensors[bias]
    if unknown:
        raise WeightsError(
            f"{checkpoint.folder}: {len(unknown)} quantized tensors are no weights of linear layers of this model "
            f"({some(unknown)}); it cannot be opened in this form."
        )
    for ours, found in homes.items():
        found.sort(key=lambda pair: pair[0].share)
        if [place.share for place, _ in found] != list(range(found[0][0].shares)):
            raise WeightsError(f"{checkpoint.folder}: only some parts of {ours} are quantized; it is fetched wrongly.")
        parts = [_read(stored, layout, device) for _, stored in found]
        _replace(network, ours.removesuffix(".weight"), parts, dtype)
        del parts
        give_back()  # what was unpacked on the way would stay with the allocator, twice the model in all
    fill(network, Checkpoint(folder=plain.folder, tensors=tensors), names, dtype=dtype, device=device)


def _some(values: Tensor) -> bool:
    return bool(values.any())


def _linear(network: nn.Module, place: Place) -> nn.Linear | None:
    path, _, last = place.ours.rpartition(".")
    try:
        layer = network.get_submodule(path)
    except AttributeError:
        return None
    fits = type(layer) is Linear and last == "weight" and not place.transposed and not place.ones
    return layer if fits and isinstance(layer, nn.Linear) else None


def _read(stored: Stored, layout: Layout, device: torch.device) -> Codes:
    codes = codes_of({suffix: stored_tensor(info) for suffix, info in stored.parts.items()}, layout, stored.weight)
    if device.type == "cpu":
        return codes
    moved: dict[str, Any] = {
        name: None if value is None else value.to(device)
        for name in ("codes", "scales", "zeros", "order")
        for value in (getattr(codes, name),)
    }
    return Codes(bits=codes.bits, **moved)


def _replace(network: nn.Module, path: str, parts: list[Codes], dtype: torch.dtype | None) -> None:
    codes = parts[0] if len(parts) == 1 else joined(parts)
    if codes is None:
        raise WeightsError(f"the parts of {path} are quantized in different ways; they cannot be one layer here.")
    layer: Any = network.get_submodule(path)
    shape = (layer.out_features, layer.in_features)
    if tuple(codes.codes.shape) != shape:
        raise WeightsError(f"{path} has a quantized weight of {list(codes.codes.shape)}, expected {list(shape)}.")
    owner, _, name = path.rpartition(".")
    setattr(network.get_submodule(owner), name, QuantizedLinear(codes, layer.bias, dtype=dtype))


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Layers of a network as they are to be written: codes by the name of the layer.

    `head_bits` are those to which the head is rounded when the folder is opened; None: it stays.
    """

    layers: Mapping[str, Mapping[str, Tensor]]
    schemes: Mapping[str, tuple[int, int | None]]
    head_bits: int | None = None


def stored_form(layers: Mapping[str, Codes], head_bits: int | None) -> Quantized:
    """Codes as tensors of the pack-quantized layout."""
    return Quantized(
        layers={name: packed_tensors(codes) for name, codes in layers.items()},
        schemes={
            name: (codes.bits, None if codes.group == codes.codes.shape[1] else codes.group)
            for name, codes in layers.items()
        },
        head_bits=head_bits,
    )


def rounding(
    how: Quantization, talks: Callable[[Processor], Iterable[Packed]] | None = None
) -> Callable[[nn.Module, Any], Quantized]:
    """What `convert` takes to write rounded layers: to the nearest, or with `talks` aware of activations (AWQ).

    `talks` gives the processed conversations that are looked at.
    """

    def quantize(network: nn.Module, processor: Any) -> Quantized:
        if talks is None:
            return stored_form(plain_codes(network, how), how.head or None)
        if not isinstance(network, VLM) or not isinstance(processor, Processor):
            raise ConfigError("method awq needs a model that answers questions; this one answers none.")
        return stored_form(aware_codes(network, how, talks(processor)), how.head or None)

    return quantize


def config_of(quantized: Quantized, network: nn.Module, names: NameMap, family: Family) -> dict[str, Any]:
    """What config.json says of a folder with these layers.

    Raises `WeightsError` for a layer that the published layout joins or turns.
    """
    schemes: dict[tuple[int, int | None], list[str]] = {}
    ignored: list[str] = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        sources = names.sources(f"{name}.weight") or {}
        if name in quantized.layers and any(p.shares > 1 or p.transposed or p.ones for p in sources.values()):
            raise WeightsError(f"{name} is joined or turned in {family.name}'s layout; it cannot be written quantized.")
        for source in sources:
            path = source.removesuffix(".weight")
            spellings = dict.fromkeys((path, names.module_path(path)))
            if name in quantized.layers:
                schemes.setdefault(quantized.schemes[name], []).extend(spellings)
            else:
                ignored.extend(spellings)
    ignored.append("lm_head")
    if len(schemes) == 1:
        schemes = {scheme: ["Linear"] for scheme in schemes}
    config: dict[str, Any] = {"quantization_config": written_config(schemes, list(dict.fromkeys(ignored)))}
    if quantized.head_bits is not None:
        config[HEAD_KEY] = quantized.head_bits
    return config
