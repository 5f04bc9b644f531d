"""Finding the family of a checkpoint, and opening and saving whole checkpoint folders."""

import importlib
import json
import logging
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from foveal.processing.processor import Processor
from torch import nn

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, InputError, neighbours
from foveal.families.base import Family
from foveal.weights.names import NameMap
from foveal.weights.read import fill, open_checkpoint
from foveal.weights.write import replacing_folder, save

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


@cache
def families() -> Mapping[str, Family]:
    """All families by name: every module of `foveal.families` that declares FAMILY, and entry points
    of the group "foveal.families" from other packages."""
    found: dict[str, Family] = {}
    package = importlib.import_module("foveal.families")
    for module in pkgutil.iter_modules(package.__path__):
        family = getattr(importlib.import_module(f"foveal.families.{module.name}"), "FAMILY", None)
        if isinstance(family, Family):
            found[family.name] = family
    for point in metadata.entry_points(group="foveal.families"):
        family = point.load()
        if not isinstance(family, Family):
            raise ConfigError(f"entry point {point.name!r} gives a {type(family).__name__}, expected a Family.")
        if family.name in found:
            raise ConfigError(f"entry point {point.name!r} declares family {family.name!r}, which exists; rename it.")
        found[family.name] = family
    return found


def family_of(published: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family that answers to a published configuration's `model_type`."""
    kind = published.get("model_type")
    known = {name: family for family in families().values() for name in family.reads}
    if kind not in known:
        if kind is None:
            raise ConfigError(f"{where} has no 'model_type'; known: {', '.join(sorted(known))}.")
        raise ConfigError(f"{where}: unknown model_type {kind!r}; {neighbours(str(kind), known)}")
    return known[kind]


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a checkpoint folder says of itself before any weight is read."""

    folder: Path
    family: Family
    config: Any
    processor: Processor
    generation: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Loaded(Described):
    """A checkpoint with its network filled and in evaluation mode."""

    network: nn.Module


def describe(folder: Path) -> Described:
    """Reads configuration, tokenizer and processing of a checkpoint folder; no weights."""
    published = read_json(folder / "config.json")
    family = family_of(published, str(folder / "config.json"))
    config = family.from_published(published)
    processor = Processor.from_folder(folder, family.processing(config), context_tokens=family.context(config))
    _check_ids(published, processor)
    path = folder / "generation_config.json"
    return Described(
        folder=folder,
        family=family,
        config=config,
        processor=processor,
        generation=read_json(path) if path.exists() else {},
    )


def load(folder: Path, *, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu") -> Loaded:
    """Opens a published checkpoint folder.

    Args:
        folder: where the files are.
        dtype: "bfloat16", "float16" or "float32"; by default the type that the files hold.
        device: "cpu", "cuda", "mps" or any torch device.
    """
    described = describe(folder)
    kind = torch_dtype(dtype)
    place = torch_device(device)
    with torch.device("meta"):
        network = described.family.build(described.config)
    names = NameMap.parse(described.family.map_text(), where=f"{described.family.name}.map")
    fill(network, open_checkpoint(folder), names, dtype=kind, device=place)
    return Loaded(**vars(described), network=network.eval().requires_grad_(False))


def random_network(family: Family, config: Any, *, seed: int, std: float = 0.02) -> nn.Module:
    """A network with normal random weights of deviation `std`, zero biases and unit norms."""
    network = family.build(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
    return network


def save_folder(
    folder: Path,
    *,
    family: Family,
    config: Any,
    network: nn.Module,
    processor: Processor,
    generation: Mapping[str, Any],
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a complete checkpoint in the official layout; `folder` appears whole or not at all."""
    names = NameMap.parse(family.map_text(), where=f"{family.name}.map")
    published = family.to_published(config)
    published["torch_dtype"] = str(next(network.parameters()).dtype).removeprefix("torch.")
    published |= processor.published_ids()
    with replacing_folder(folder) as temporary:
        write_json(temporary / "config.json", published)
        if generation:
            write_json(temporary / "generation_config.json", generation)
        processor.save(temporary)
        save(network, temporary, names, shard_bytes=shard_bytes)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes one JSON file in the layout of published ones."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating type by name; None stays None ("as in the files")."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in DTYPES.values()):
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; {neighbours(str(dtype), DTYPES)}")
    return DTYPES[str(dtype)]


def torch_device(device: str | torch.device) -> torch.device:
    """A device that can be used here; `InputError` says what there is."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        have = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {str(device)!r} cannot be used ({reason}); this machine has {', '.join(have)}."
        ) from None
    return place


def _check_ids(published: Mapping[str, Any], processor: Processor) -> None:
    """config.json and tokenizer must agree on the ids of the vision tokens."""
    for key, wanted in processor.published_ids().items():
        stated = published.get(key, wanted)
        if key.endswith("token_id") and key.startswith(("image", "video", "vision")) and stated != wanted:
            raise ConfigError(
                f"config.json says {key} = {stated}, the tokenizer says {wanted}; "
                "the files come from different models: take both from one."
            )
