"""Checkpoints in any layout that a family reads, written in the official one: `convert`.

    SOURCE                                     what is read
    folder, hub name                           safetensors in any layout of its family, or .bin files of PyTorch
    .npz                                       arrays of the original ViT code and of big_vision (ViT, SigLIP)
    .pt, .pth, .bin, .safetensors              tensors, or PyTorch's TorchScript archive (OpenAI's CLIP, open_clip)

Nothing that a file holds is run: see `weights.pickled` and `weights.arrays`.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, FovealError, HubError, InputError, WeightsError
from foveal.families.base import Family
from foveal.families.describe import describe, families, family_of, folder_of
from foveal.families.load import fitting_map, name_map, save_folder, to_json, torch_dtype
from foveal.families.quantized import Quantized
from foveal.processing.pictures import PictureProcessing
from foveal.weights.arrays import plain, read_npz
from foveal.weights.checkpoint import INDEX, SINGLE, open_checkpoint, read_header
from foveal.weights.hub import PATTERNS, locate
from foveal.weights.names import NameMap
from foveal.weights.pickled import read_pickled
from foveal.weights.read import fill, shapes_fit
from foveal.weights.write import refuse_foreign

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
Quantize = Callable[[torch.nn.Module, Any], Quantized]
MAX_SMALL_BYTES = 256 * 1024**2
"""Largest file that is taken for a configuration or a vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion did.

    Attributes:
        source, target: where from and where to.
        family: name of the system.
        layout: name of the layout that was read; "official" for the one that is written.
        tensors, values: how many were read.
        files: names of the files that were written.
        dtype: type of the weights that were written.
        size_bytes: of the weights that were written.
        notes: what the user should know: what was guessed or left out.
    """

    source: str
    target: Path
    family: str
    layout: str
    tensors: int
    values: int
    files: tuple[str, ...]
    dtype: str
    size_bytes: int
    notes: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    files: str | Path | None = None,
    dtype: str | None = None,
    quantize: Quantize | None = None,
) -> Converted:
    """Writes the checkpoint `source` to the folder `target`, which appears whole or not at all.

    Args:
        source: a folder, a hub name, or a file; see above.
        target: a new folder, or an earlier checkpoint, which is replaced.
        files: a folder with small files that the source lacks (config.json, vocabulary, processor settings).
        dtype: "bfloat16", "float16" or "float32"; by default as stored, and float32 where the source mixes types.
        quantize: the filled network and its processor -> the layers that are written as codes.

    Raises:
        InputError, HubError: source or target cannot be used; ConfigError: no family knows the layout, or a
        configuration or vocabulary is missing; WeightsError: tensors are missing, surplus or damaged.
    """
    kind, place = torch_dtype(dtype), Path(target).absolute()
    folder, loose = _found(source)
    if any(place.resolve() == one.resolve() for one in (folder, loose) if one is not None):
        raise InputError(f"{target} is the source itself; choose another folder to write to.")
    extra = None if files is None else Path(files).expanduser()
    if extra is not None and not extra.is_dir():
        raise InputError(f"{files} is not a folder; --files takes the folder of the small files.")
    refuse_foreign(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".foveal-", dir=place.parent) as name, _named(name, source):
        stage = Path(name)
        for one in (extra, folder):  # the source's own files stand above the others
            _copy_small(one, stage)
        weights = _stage_weights(folder, loose, stage, notes)
        family, names = _complete(stage, weights, loose, notes)
        described = describe(stage)
        with torch.device("meta"):
            network = family.build(described.config)
        checkpoint = open_checkpoint(weights)
        if names is None:
            names = fitting_map(family, checkpoint.tensors, lambda found: shapes_fit(network, checkpoint, found))
        floating = {t.dtype for t in checkpoint.tensors.values() if t.dtype in ("F64", "F32", "F16", "BF16")}
        if kind is None and len(floating) > 1:
            kind = torch.float32
            notes.append(f"the weights are stored as {' and '.join(sorted(floating))}; written as float32")
        fill(network, checkpoint, names, dtype=kind)
        config, processor = described.config, described.processor
        if family.portable is not None:
            config, processor = family.portable(config, processor)
            network = _moved(network, family.build, config, notes)
        quantized = None if quantize is None else quantize(network.eval().requires_grad_(False), processor)
        save_folder(
            place,
            family=family,
            config=config,
            network=network,
            processor=processor,
            generation=described.generation,
            quantized=quantized,
        )
        written = open_checkpoint(place)
        return Converted(
            source=str(source),
            target=place,
            family=family.name,
            layout=_layout(names),
            tensors=len(checkpoint.tensors),
            values=checkpoint.values,
            files=tuple(sorted(p.name for p in place.iterdir())),
            dtype=written.dtype,
            size_bytes=written.size_bytes,
            notes=tuple(notes),
        )


def _found(source: str | Path) -> tuple[Path | None, Path | None]:
    """The folder or the file that a source names."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in READERS:
            raise InputError(
                f"{path} is a {path.suffix or 'nameless kind of'} file; {', '.join(READERS)} are converted."
            )
        return None, path
    if path.suffix in READERS:
        raise InputError(f"{path} does not exist; check the name.")
    try:
        folder = folder_of(source)
        if not path.is_dir() and not any((folder / name).exists() for name in (SINGLE, INDEX)):
            folder = locate(source, also=("*.bin",))  # a model of the hub that has PyTorch's own files only
        return folder, None
    except HubError as error:
        raise HubError(f"{error} `convert` also takes files: {', '.join(READERS)}.") from None


def _copy_small(folder: Path | None, stage: Path) -> None:
    """Configuration, vocabulary and processor settings of a folder."""
    if folder is None:
        return
    for path in sorted(folder.iterdir()):
        small = any(fnmatch(path.name, pattern) for pattern in PATTERNS if pattern != "*.safetensors")
        if small and not path.name.endswith(".index.json") and path.is_file():
            if path.stat().st_size > MAX_SMALL_BYTES:
                raise InputError(f"{path} is too large for a configuration or vocabulary; move it away.")
            shutil.copy(path, stage / path.name)


def _stage_weights(folder: Path | None, loose: Path | None, stage: Path, notes: list[str]) -> Path:
    """A folder with the weights as safetensors: the source's own, or the stage."""
    if loose is not None:
        with _disk_errors():
            save_file(_savable(READERS[loose.suffix](loose)), stage / SINGLE, metadata={"format": "pt"})
        return stage
    if folder is None or (folder / SINGLE).exists() or (folder / INDEX).exists():
        return folder or stage
    if (folder / BIN_INDEX).exists():
        shards = sorted({str(name) for name in dict(read_json(folder / BIN_INDEX).get("weight_map") or {}).values()})
        if not shards or any(Path(s).name != s or not s.endswith(".bin") or s.startswith(".") for s in shards):
            raise WeightsError(f"{folder / BIN_INDEX} does not name .bin files beside it; fetch it again.")
    elif (folder / BIN).exists():
        shards = [BIN]
    else:
        return folder  # open_checkpoint says what is missing
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        if not (folder / shard).is_file():
            raise WeightsError(f"{folder} lacks {shard}, which {BIN_INDEX} names; fetch the checkpoint again.")
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE
        tensors = _savable(read_pickled(folder / shard))
        if twice := where.keys() & tensors.keys():
            raise WeightsError(f"{folder / shard} holds {min(twice)} a second time; fetch the checkpoint again.")
        with _disk_errors():
            save_file(tensors, stage / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        (stage / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    notes.append(f"read {len(shards)} .bin file{'s' if len(shards) > 1 else ''} of PyTorch; nothing in them was run")
    return stage


def _moved(
    network: torch.nn.Module, build: Callable[[Any], torch.nn.Module], config: Any, notes: list[str]
) -> torch.nn.Module:
    """The weights in the network of another configuration; what that has no place for is left out, and said."""
    with torch.device("meta"):
        target = build(config)
    have, wanted = network.state_dict(), target.state_dict()
    if left := sorted(have.keys() - wanted.keys()):
        notes.append(f"left out {len(left)} tensors that the written layout has no place for (first: {left[0]})")
    target.load_state_dict({name: have[name] for name in wanted}, assign=True)
    return target


def _arrays(path: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in read_npz(path).items() if tensor.numel()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    read_header(path)  # says in our words what is wrong with a damaged file
    return load_file(path)


READERS: Mapping[str, Callable[[Path], dict[str, Tensor]]] = {
    ".npz": _arrays,
    ".pt": read_pickled,
    ".pth": read_pickled,
    ".bin": read_pickled,
    ".safetensors": _safetensors,
}
"""How a single file is read, by its ending."""


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor in one piece and with bytes of its own, as safetensors wants them."""
    seen: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        key = tensor.data_ptr()
        own = tensor.is_contiguous() and key not in seen
        seen.add(key)
        ready[name] = tensor if own else tensor.clone(memory_format=torch.contiguous_format)
    return ready


def _complete(stage: Path, weights: Path, loose: Path | None, notes: list[str]) -> tuple[Family, NameMap | None]:
    """Fills in what the small files lack, and brings the weights of a single file into the ranks that maps expect."""
    if not (stage / "config.json").exists() and (stage / "open_clip_config.json").exists():
        stated = read_json(stage / "open_clip_config.json")
        (stage / "config.json").write_text(to_json({"model_type": "clip", **stated}), encoding="utf-8")
    names: NameMap | None = None
    published = read_json(stage / "config.json") if (stage / "config.json").exists() else None
    if loose is None:
        if published is None:
            raise ConfigError(f"{weights} has no config.json; give a folder that has it with --files.")
        family = family_of(published)
        config = family.from_published(published)
    else:
        family, layout, names = _recognised(open_checkpoint(stage).tensors, loose, published)
        shapes = {names.official(n): info.shape for n, info in open_checkpoint(stage).tensors.items()}
        if published is not None:
            config = family.from_published(published)
        elif family.guess is None:
            raise ConfigError(f"{loose} says too little of its {family.name} model; give its config.json with --files.")
        else:
            try:
                config = family.guess(layout, shapes)
            except (KeyError, IndexError, ValueError, TypeError) as error:
                if isinstance(error, FovealError):
                    raise
                raise WeightsError(f"{loose} is incomplete: {error} is missing or of another shape.") from None
            (stage / "config.json").write_text(to_json(family.to_published(config)), encoding="utf-8")
            notes.append("the configuration was read off the shapes of the weights")
        if layout == "big_vision":
            _settle_arrays(stage, names, family.build, config, notes)
    declared = family.processing(config)
    settings = ("preprocessor_config.json", "processor_config.json")
    if isinstance(declared, PictureProcessing) and not any((stage / name).exists() for name in settings):
        for name, values in declared.vision.files().items():
            (stage / name).write_text(to_json(values), encoding="utf-8")
        notes.append("no processor settings were given; the family's own are written")
    return family, names


def _recognised(
    tensors: Mapping[str, Any], loose: Path, published: Mapping[str, Any] | None
) -> tuple[Family, str | None, NameMap]:
    """The family and layout whose map knows every tensor."""
    known = families().values() if published is None else [family_of(published)]
    nearest: tuple[int, str, list[str]] = (0, "", [])
    for family in known:
        for layout in family.layouts():
            names = name_map(family, layout)
            strange = [name for name in tensors if not (names.place(name) or names.skips(name))]
            if not strange:
                return family, layout, names
            if len(tensors) - len(strange) > nearest[0]:
                nearest = (len(tensors) - len(strange), names.where, strange)
    hint = f" {nearest[1]} knows all but {len(nearest[2])} of them ({nearest[2][0]})." if nearest[0] else ""
    raise ConfigError(f"no family knows the {len(tensors)} tensors of {loose} (first: {min(tensors)}).{hint}")


def _settle_arrays(
    stage: Path, names: NameMap, build: Callable[[Any], torch.nn.Module], config: Any, notes: list[str]
) -> None:
    """Arrays of big_vision as matrices; what the published layout has no place for is left out, and said."""
    with torch.device("meta"):
        places = build(config).state_dict()
    tensors = {name: plain(name, tensor) for name, tensor in load_file(stage / SINGLE).items()}
    bare = "pre_logits.kernel" in tensors
    settled: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = names.place(name)
        table = places.get(place.ours) if place is not None and place.ours == "vision.positions" else None
        if bare and name.startswith("head."):
            notes.append(f"left out: {name} {list(tensor.shape)}; the published layout has pre_logits or a head")
        elif name in ("t", "b"):
            settled[name] = tensor.reshape(1)
        elif table is not None and tensor.ndim == 3 and tensor.shape[1] == len(table) - 1:
            # big_vision adds positions before the class token, which then has none.
            settled[name] = torch.cat((torch.zeros_like(tensor[:, :1]), tensor), dim=1)
        else:
            settled[name] = tensor
    with _disk_errors():
        save_file(_savable(settled), stage / "settled", metadata={"format": "pt"})
        (stage / "settled").replace(stage / SINGLE)


def _layout(names: NameMap) -> str:
    parts = names.where.split(".")
    return parts[1] if len(parts) == 3 else "official"


@contextmanager
def _named(stage: str, source: str | Path) -> Iterator[None]:
    """Errors speak of the source, not of the folder between."""
    try:
        yield
    except FovealError as error:
        raise type(error)(str(error).replace(stage, str(source))) from None


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"the weights cannot be written: {error}") from error
