"""Tensors from PyTorch's own files (.bin, .pt, .pth, OpenAI's TorchScript archives), without running anything in them.

Such a file is a zip archive: the bytes of every storage, and `data.pkl`, a program for pickle's machine that puts
tensors together. Python's pickle would run any function that the program names. Here the program is followed step by
step by a machine that can only make plain data: a function's call stays a record of its name and arguments, and the
few records that mean a tensor are read as one. Anything else is refused or passed over. Used for converting only.

Source of the format: PyTorch, *Serialization semantics*; the opcodes are those of `pickletools`.
"""

import io
import itertools
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from foveal.core.errors import WeightsError

MAX_PROGRAM_BYTES = 64 * 1024**2
"""Largest `data.pkl`; those of the largest models have a few megabytes."""
MAX_DEPTH = 64
"""Modules within modules."""
MAX_OBJECTS = 100_000
"""Modules and dictionaries in all; a small program can say more than could ever be walked through."""
OLD_MAGIC = 0x1950A86A20F9469CFC6C
"""What the first program in a file of before PyTorch 1.6 gives."""

STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Name:
    """A function or class that the program names; never looked up."""

    module: str
    name: str


@dataclass
class Made:
    """What a call or a new object would have been, and the state given to it."""

    what: Any
    arguments: Any
    state: Any = None


@dataclass(frozen=True)
class Stored:
    """A reference to bytes beside the program (pickle's persistent id)."""

    key: Any


class _Mark:
    """Where a list of arguments begins on the stack."""


def read_pickled(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` or `torch.jit.save` wrote, by name; they lie in a memory map.

    A training checkpoint gives the tensors under its `state_dict`; a prefix `module.` that all names share, as
    distributed training leaves it, is dropped.

    Raises `WeightsError` when the file cannot be read, holds no tensors by name, or would need code to be run.
    """
    file = Path(path)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return _named(_program(archive, file), file)
        return _named(_sequence(file), file)
    except (OSError, zipfile.BadZipFile, struct.error) as error:
        raise WeightsError(f"{file} cannot be read: {error}; fetch it again.") from None


def _program(archive: zipfile.ZipFile, file: Path) -> Any:
    """The data that an archive's `data.pkl` describes, with tensors in their places (PyTorch 1.6 and later)."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    programs = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise WeightsError(f"{file} is a zip archive but holds no tensors of PyTorch (no data.pkl).")
    root = programs[0].removesuffix("data.pkl")
    if entries[programs[0]].file_size > MAX_PROGRAM_BYTES:
        raise WeightsError(f"{file}: data.pkl has {entries[programs[0]].file_size:,} bytes, more than any model needs.")
    order = entries.get(f"{root}byteorder")
    if order is not None and archive.read(order) != b"little":
        raise WeightsError(f"{file} was written on a big-endian machine, which is not read.")
    places = {}
    with file.open("rb") as stream:
        for name, entry in entries.items():
            if name.startswith(f"{root}data/"):
                places[name.removeprefix(f"{root}data/")] = _place(entry, stream, file)
    made = _follow(io.BytesIO(archive.read(programs[0])), file, _Machine())
    return _tensors(made, _Storages(file, places), file, {})


def _place(entry: zipfile.ZipInfo, stream: BinaryIO, file: Path) -> tuple[int, int]:
    """First byte and number of bytes of an entry's data, which begins behind a header of its own."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise WeightsError(f"{file}: {entry.filename!r} is compressed or encrypted, which PyTorch never does.")
    stream.seek(entry.header_offset)
    header = stream.read(30)
    if header[:4] != b"PK\x03\x04":
        raise WeightsError(f"{file}: {entry.filename!r} has no header of its own; fetch the file again.")
    name, extra = struct.unpack("<HH", header[26:30])
    return entry.header_offset + 30 + int(name) + int(extra), entry.file_size


def _sequence(file: Path) -> Any:
    """The data of a file of before PyTorch 1.6: five programs, then every storage as its length and its values."""
    with file.open("rb") as stream:
        try:
            magic = _follow(stream, file, _Machine())
        except WeightsError:
            magic = None
        if magic != OLD_MAGIC:
            raise WeightsError(f"{file} is no file of tensors that PyTorch wrote.")
        machines = [_Machine() for _ in range(4)]  # version, machine, data, names of the storages
        version, machine, made, names = (_follow(stream, file, m) for m in machines)
        if version != 1001 or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise WeightsError(f"{file} has a format or byte order that is not read; save it with a newer PyTorch.")
        kinds = {str(key[2]): _dtype(key, file) for key in machines[2].stored if _is_storage(key)}
        places, size = {}, file.stat().st_size
        if not isinstance(names, list):
            raise WeightsError(f"{file} does not list its storages; fetch it again.")
        for key in names:
            (length,) = struct.unpack("<q", stream.read(8))
            if key not in kinds or not 0 <= length <= size:
                raise WeightsError(f"{file}: the storage {key!r} is damaged; fetch the file again.")
            places[key] = (stream.tell(), length * kinds[key].itemsize)
            stream.seek(length * kinds[key].itemsize, io.SEEK_CUR)
    return _tensors(made, _Storages(file, places), file, {})


def _is_storage(key: Any) -> bool:
    """Whether a persistent id is that of a storage: ("storage", type, name, device, length, and in old files None)."""
    return isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage" and isinstance(key[2], str)


def _dtype(key: Any, file: Path) -> torch.dtype:
    kind = key[1]
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in STORAGES:
        raise WeightsError(
            f"{file} has a storage of {_called(kind)}; the kinds that are read are {', '.join(STORAGES)}."
        )
    return STORAGES[kind.name]


class _Storages:
    """The storages of a file, by name: where each lies in a memory map."""

    def __init__(self, file: Path, places: Mapping[str, tuple[int, int]]) -> None:
        self._file, self._places = file, places
        self._bytes = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)

    def values(self, key: Any) -> Tensor:
        """All values of the storage that a persistent id names, [n]."""
        if not _is_storage(key) or any(part is not None for part in key[5:]):
            raise WeightsError(f"{self._file} refers to a storage as {key!r}, which is not read.")
        dtype = _dtype(key, self._file)
        if key[2] not in self._places:
            raise WeightsError(f"{self._file} lacks the storage {key[2]!r}; fetch it again.")
        start, size = self._places[key[2]]
        raw = self._bytes[start : start + size]
        if len(raw) < size or size % dtype.itemsize:
            raise WeightsError(f"{self._file}: storage {key[2]!r} was cut short; fetch the file again.")
        # Archives have storages at multiples of 64 bytes; elsewhere a copy is aligned.
        return (raw.clone() if start % dtype.itemsize else raw).view(dtype)


def _tensors(value: Any, storages: _Storages, file: Path, seen: dict[int, Any], depth: int = 0) -> Any:
    """`value` with records of tensors made into tensors, and objects into dictionaries of their state."""
    if depth > MAX_DEPTH:
        raise WeightsError(f"{file} holds objects nested more than {MAX_DEPTH} deep, which no model is.")
    if not isinstance(value, Made | dict):
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        result: Any = {}
        seen[id(value)] = result
        result.update({key: _tensors(v, storages, file, seen, depth + 1) for key, v in value.items()})
        return result
    if value.what == Name("torch._utils", "_rebuild_tensor_v2"):
        result = _tensor(value.arguments, storages, file)
    elif value.what == Name("torch._utils", "_rebuild_parameter"):
        result = _tensors(value.arguments[0] if value.arguments else None, storages, file, seen, depth + 1)
    elif value.what == Name("collections", "OrderedDict"):
        if value.arguments:
            raise WeightsError(f"{file} builds a dictionary in a way that is not read.")
        # Items are set on the record itself; see `_Machine.items`.
        result = _tensors(value.state or {}, storages, file, seen, depth + 1)
    elif isinstance(value.what, Name) and value.what.module.partition(".")[0] == "__torch__":
        result = _tensors(value.state or {}, storages, file, seen, depth + 1)
    else:
        result = value  # inert, and refused if it stands where a tensor should
    seen[id(value)] = result
    return result


def _tensor(arguments: Any, storages: _Storages, file: Path) -> Tensor:
    """A tensor from its storage, offset, shape and strides, all checked against the storage's size."""
    if not (isinstance(arguments, tuple) and len(arguments) >= 4 and isinstance(arguments[0], Stored)):
        raise WeightsError(f"{file} describes a tensor in a way that is not read.")
    stored, offset, shape, strides = arguments[:4]
    numbers = [
        offset,
        *(shape if isinstance(shape, tuple) else [None]),
        *(strides if isinstance(strides, tuple) else []),
    ]
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
        raise WeightsError(f"{file} describes a tensor of shape {shape!r} and strides {strides!r}, which is damaged.")
    values = storages.values(stored.key)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else offset - 1
    if last >= len(values):
        raise WeightsError(
            f"{file}: a tensor of shape {list(shape)} does not fit into its {len(values)} stored values."
        )
    return values.as_strided(shape, strides, values.storage_offset() + offset)


def _named(value: Any, file: Path) -> dict[str, Tensor]:
    """Tensors by dotted name."""
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping):
        what = f"an object of {_called(value.what)}" if isinstance(value, Made) else f"a {type(value).__name__}"
        raise WeightsError(f"{file} holds {what}, expected tensors by name; no code is run to make it.")
    found = dict(_walk(value, "", file, itertools.count()))
    if not found:
        raise WeightsError(f"{file} holds no tensor by name.")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def _walk(
    value: Mapping[Any, Any], prefix: str, file: Path, visits: "itertools.count[int]"
) -> Iterator[tuple[str, Tensor]]:
    if prefix.count(".") > MAX_DEPTH or next(visits) > MAX_OBJECTS:
        raise WeightsError(
            f"{file} holds objects nested more than {MAX_DEPTH} deep or more than {MAX_OBJECTS:,}, which no model does."
        )
    for key, item in value.items():
        if isinstance(item, Tensor):
            yield f"{prefix}{key}", item
        elif isinstance(item, Mapping):
            yield from _walk(item, f"{prefix}{key}.", file, visits)
        elif isinstance(item, Made):
            raise WeightsError(
                f"{file}: {prefix}{key} would be made by {_called(item.what)}, which is not run; save the tensors "
                "alone, in a place where you trust the file."
            )


def _called(what: Any) -> str:
    return f"{what.module}.{what.name}" if isinstance(what, Name) else type(what).__name__


def _follow(program: BinaryIO, file: Path, machine: "_Machine") -> Any:
    """What a pickle program leaves on its stack, made of plain data, `Name`, `Made` and `Stored`."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    except Exception as error:  # a damaged program fails in many ways
        raise WeightsError(f"{file} holds a damaged program ({error!r}); fetch the file again.") from None
    raise WeightsError(f"{file} holds a program without an end; fetch the file again.")


class _Machine:
    """Pickle's machine with nothing to call. It knows the opcodes that PyTorch's writers use."""

    VALUES = frozenset(
        """BININT BININT1 BININT2 LONG1 LONG4 INT LONG BINFLOAT FLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE
        BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING STRING""".split()
    )
    CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    SHORT_TUPLES: Mapping[str, int] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.stored: list[Any] = []
        """Keys of all storages that were referred to."""

    def step(self, name: str, argument: Any) -> None:
        """Follows one opcode; `WeightsError` for one that PyTorch does not write."""
        stack = self.stack
        if name in self.VALUES:
            stack.append(argument)
        elif name in self.CONSTANTS:
            stack.append(self.CONSTANTS[name])
        elif name in self.SHORT_TUPLES:
            size = self.SHORT_TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            stack.append(_Mark())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = self.since_mark()
            stack[-1].extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self.items(stack[-1], [key, value])
        elif name == "SETITEMS":
            pairs = self.since_mark()
            self.items(stack[-1], pairs)
        elif name == "GLOBAL":
            module, _, what = argument.rpartition(" ")
            stack.append(Name(module, what))
        elif name == "STACK_GLOBAL":
            what, module = stack.pop(), stack.pop()
            stack.append(Name(module, what))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, what = stack.pop(), stack.pop()
            stack.append(Made(what, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Made) and not isinstance(stack[-1].state, dict):
                stack[-1].state = state
        elif name == "BINPERSID":
            self.stored.append(stack.pop())
            stack.append(Stored(self.stored[-1]))
        elif name == "POP":
            stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise WeightsError(f"data.pkl uses the opcode {name}, which PyTorch does not write; it is not read.")

    def since_mark(self) -> list[Any]:
        """Takes everything above the last mark off the stack, and the mark."""
        index = max(i for i, item in enumerate(self.stack) if isinstance(item, _Mark))
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items

    def items(self, target: Any, pairs: list[Any]) -> None:
        """Sets items of a dictionary, or of the record of one that is ordered."""
        if isinstance(target, Made) and target.state is None:
            target.state = {}
        place = target.state if isinstance(target, Made) else target
        if not isinstance(place, dict):
            raise WeightsError("data.pkl sets items of what is no dictionary; it is not read.")
        place.update(zip(pairs[::2], pairs[1::2], strict=True))
