"""Checkpoint folders as their headers describe them: which tensor lies where. No tensor is read, torch is not needed.

A folder holds either one `model.safetensors`, or shards and `model.safetensors.index.json`. A safetensors
file is the length of its header (8 bytes, little endian), the header (JSON: dtype, shape and byte range of
every tensor), and the tensors' bytes. Everything in it is checked before any of it is believed.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, WeightsError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library itself accepts; more is a sign of a damaged or hostile file."""

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of one value, by safetensors' name of the type."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor of a checkpoint: its file, type (safetensors' name, e.g. "BF16"), shape and size."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.values * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of a checkpoint folder, by published name."""

    folder: Path
    tensors: Mapping[str, TensorInfo]

    @property
    def values(self) -> int:
        """Number of stored values, a redundant copy counted too."""
        return sum(t.values for t in self.tensors.values())

    @property
    def size_bytes(self) -> int:
        return sum(t.size_bytes for t in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The type in which most values are stored, in safetensors' spelling."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.dtype] += tensor.values
        return counts.most_common(1)[0][0]


def open_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Reads and checks the headers of a checkpoint folder.

    Raises `WeightsError` when the folder has no weights, the index and the files disagree, a shard is
    missing, or a file is damaged; the message names the file and, where there is one, the tensor.
    """
    path = Path(folder)
    if not path.is_dir():
        raise WeightsError(f"{path} is not a folder; pass the folder of a checkpoint.")
    single, index = path / SINGLE, path / INDEX
    if single.exists() and index.exists():
        raise WeightsError(f"{path} holds both {SINGLE} and {INDEX}; remove the one that is out of date.")
    if index.exists():
        tensors = _open_shards(index)
    elif single.exists():
        tensors = read_header(single)
    else:
        raise WeightsError(_no_weights(path))
    if not tensors:
        raise WeightsError(f"{path} holds no tensor at all; the file was written without any, so copy it again.")
    return Checkpoint(folder=path, tensors=tensors)


def _no_weights(folder: Path) -> str:
    found = sorted(p.name for p in folder.iterdir() if p.suffix in {".safetensors", ".bin", ".pt", ".pth", ".gguf"})
    if any(name.endswith(".safetensors") for name in found):
        return f"{folder} holds {some(found)} but no {INDEX} that says what is where; fetch the index too."
    if found:
        return (
            f"{folder} holds {some(found)} but no safetensors file; other formats are not read: "
            "fetch the checkpoint as safetensors, or write it so with `foveal convert`."
        )
    return f"{folder} holds neither {SINGLE} nor {INDEX}; a checkpoint needs one of them."


def _open_shards(index: Path) -> dict[str, TensorInfo]:
    try:
        weight_map = read_json(index).get("weight_map")
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{index} has no `weight_map` object that says which tensor is in which file.")
    by_file: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        # A name that leaves the folder would let a downloaded index read other files.
        if not isinstance(file, str) or file != Path(file).name or "\\" in file or file.startswith("."):
            raise WeightsError(f"{index}: tensor {name!r} is in {file!r}, expected the plain name of a file beside it.")
        if not file.endswith(".safetensors"):
            raise WeightsError(f"{index}: tensor {name!r} is in {file!r}, which is not a .safetensors file.")
        by_file.setdefault(file, set()).add(name)
    absent = [file for file in sorted(by_file) if not (index.parent / file).is_file()]
    if absent:
        raise WeightsError(
            f"{index.parent} lacks {len(absent)} of the {len(by_file)} files that {INDEX} names: {some(absent)}; "
            "fetch the checkpoint again."
        )
    tensors: dict[str, TensorInfo] = {}
    for file, expected in sorted(by_file.items()):
        inside = read_header(index.parent / file)
        if missing := expected - inside.keys():
            raise WeightsError(
                f"{index.parent / file} lacks {len(missing)} tensors that {INDEX} says it has: "
                f"{some(sorted(missing))}; fetch the file and the index again."
            )
        if surplus := inside.keys() - expected:
            raise WeightsError(
                f"{index.parent / file} holds {len(surplus)} tensors that {INDEX} does not list there: "
                f"{some(sorted(surplus))}; fetch the file and the index again."
            )
        tensors.update(inside)
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in the order of their bytes; raises `WeightsError` when it is damaged."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise WeightsError(
                    f"{file} is no whole safetensors file: it has {size} bytes and claims a header of "
                    f"{length if size >= 8 else '?'}; fetch it again."
                )
            raw = stream.read(length)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} has a damaged header ({error}); fetch it again.") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{file} has a header that is no JSON object; fetch it again.")
    header.pop("__metadata__", None)
    ranges: list[tuple[int, int, TensorInfo]] = []
    for name, entry in header.items():
        ranges.append(_entry(file, name, entry))
    ranges.sort(key=lambda r: r[:2])
    position = 0
    for start, stop, info in ranges:
        if start != position:
            raise WeightsError(
                f"{file}: tensor {info.name!r} begins at byte {start} of the data, expected {position}; "
                "the header is damaged, fetch the file again."
            )
        position = stop
    if position != size - 8 - length:
        raise WeightsError(
            f"{file} has {size - 8 - length} bytes of data, its header describes {position}; "
            "it was cut short or damaged, fetch it again."
        )
    return {info.name: info for _, _, info in ranges}


def _entry(file: Path, name: str, entry: Any) -> tuple[int, int, TensorInfo]:
    """One tensor of a header as (first byte, byte after the last, what it is)."""
    if not isinstance(entry, dict):
        raise WeightsError(f"{file}: tensor {name!r} is described by {entry!r}, expected an object.")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if dtype not in ITEM_BYTES:
        raise WeightsError(
            f"{file}: tensor {name!r} is stored as {dtype!r}; the types that are read are {', '.join(ITEM_BYTES)}."
        )
    if not (_whole_numbers(shape) and _whole_numbers(offsets) and len(offsets) == 2):
        raise WeightsError(
            f"{file}: tensor {name!r} has shape {shape!r} and bytes {offsets!r}, expected whole numbers."
        )
    info = TensorInfo(name=name, file=file, dtype=dtype, shape=tuple(shape))
    if offsets[1] - offsets[0] != info.size_bytes:
        raise WeightsError(
            f"{file}: tensor {name!r} has {offsets[1] - offsets[0]} bytes, but {list(shape)} values of {dtype} "
            f"take {info.size_bytes}; the header is damaged, fetch the file again."
        )
    return offsets[0], offsets[1], info


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands in it twice")
        found[key] = value
    return found


def some(names: Iterable[str], most: int = 4, separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    tail = f" and {len(every) - most} more" if len(every) > most else ""
    return separator.join(every[:most]) + tail
