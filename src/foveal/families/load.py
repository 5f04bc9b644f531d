"""Opening and saving whole checkpoint folders."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from foveal.core.config import read_json
from foveal.core.errors import InputError, WeightsError, neighbours
from foveal.families.base import Family
from foveal.families.describe import Described, describe
from foveal.families.quantized import Quantized, config_of, fill_quantized, outline
from foveal.nn.lora import adapted
from foveal.nn.quantized_linear import QuantizedLinear
from foveal.processing.pictures import PictureProcessor
from foveal.processing.processor import Processor
from foveal.weights.names import NameMap
from foveal.weights.quantized import layout_of
from foveal.weights.read import fill, open_checkpoint, shapes_fit
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


@dataclass(frozen=True, kw_only=True)
class Loaded(Described):
    """A checkpoint with its network filled and in evaluation mode."""

    network: nn.Module


class Unfilled(TorchFunctionMode):
    """Networks are built without random values, which the checkpoint replaces.

    On the meta device they would hold none anyhow, but the first `normal_` there imports torch's compiler: 1 s.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in RANDOM:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


RANDOM = (torch.Tensor.normal_, torch.Tensor.uniform_)


def load(
    folder: Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    adapter: str | Path | None = None,
) -> Loaded:
    """Opens a published checkpoint folder.

    Args:
        folder: where the files are.
        dtype: "bfloat16", "float16" or "float32"; by default the type that the files hold.
        device: "cpu", "cuda", "mps" or any torch device.
        adapter: folder or hub name of updates that are computed beside the weights (PEFT's files).
    """
    described = describe(folder)
    kind = torch_dtype(dtype)
    place = torch_device(device)
    with torch.device("meta"), Unfilled():
        network = described.family.build(described.config)
    checkpoint = open_checkpoint(folder)
    layout = layout_of(read_json(folder / "config.json"), str(folder / "config.json"))
    whole = checkpoint if layout is None else outline(checkpoint, layout)
    names = fitting_map(described.family, whole.tensors, lambda names: shapes_fit(network, whole, names))
    if layout is None:
        fill(network, checkpoint, names, dtype=kind, device=place)
    else:
        fill_quantized(network, checkpoint, layout, names, dtype=kind, device=place)
    if adapter is not None:
        from foveal.families.adapter import open_adapter

        open_adapter(network, adapter, family=described.family, config=described.config)
    return Loaded(**vars(described), network=network.eval().requires_grad_(False))


def name_map(family: Family, layout: str | None = None) -> NameMap:
    """The family's name map for one layout."""
    return NameMap.parse(family.map_text(layout), where=family.map_file(layout))


def fitting_map(family: Family, tensors: Iterable[str], fits: Callable[[NameMap], bool] | None = None) -> NameMap:
    """The first of the family's maps that knows all of these published names, and that `fits`.

    If none fits, the first that knows the names; if none knows them, the official one.
    """
    published = list(tensors)
    official = name_map(family)
    known = []
    for layout in family.layouts():
        names = official if layout is None else name_map(family, layout)
        if all(names.place(name) or names.skips(name) for name in published):
            known.append(names)
    fitting = known if fits is None or len(known) < 2 else [*filter(fits, known), *known]
    return fitting[0] if fitting else official


def random_network(family: Family, config: Any, *, seed: int, std: float = 0.02) -> nn.Module:
    """A network with normal random weights of deviation `std`, zero biases and unit norms; fixed tables stay."""
    network = family.build(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if not parameter.requires_grad:
                continue
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
    processor: Processor | PictureProcessor,
    generation: Mapping[str, Any],
    shard_bytes: int = 5 * 10**9,
    quantized: Quantized | None = None,
) -> None:
    """Writes a complete checkpoint in the official layout; `folder` appears whole or not at all.

    `quantized` has the linear layers that are written as codes (compressed-tensors) instead of the network's weights.
    """
    if layers := adapted(network):
        raise WeightsError(
            f"{len(layers)} layers carry updates (first: {min(layers)}), for which a checkpoint has no place; save "
            "the adapter alone, or merge and strip it first."
        )
    if packed := [name for name, module in network.named_modules() if isinstance(module, QuantizedLinear)]:
        raise WeightsError(
            f"{len(packed)} layers are quantized in memory (first: {packed[0]}) and cannot be written; "
            "`foveal convert --quantize` writes a quantized folder from the full weights."
        )
    names = name_map(family, family.layout(config))
    published = family.to_published(config)
    if quantized is not None:
        published |= config_of(quantized, network, names, family)
    published["torch_dtype"] = str(next(network.parameters()).dtype).removeprefix("torch.")
    published |= processor.published_ids()
    files: dict[str, str | bytes] = {"config.json": to_json(published), **processor.files()}
    if generation:
        files["generation_config.json"] = to_json(generation)
    with replacing_folder(folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content.encode() if isinstance(content, str) else content)
        replaced = {} if quantized is None else {f"{name}.weight": parts for name, parts in quantized.layers.items()}
        save(network, temporary, names, shard_bytes=shard_bytes, replaced=replaced)


def to_json(value: Mapping[str, Any]) -> str:
    """JSON text in the layout of published files."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


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
