"""Rows of a file by their number: JSON lines, a JSON list, parquet, tar. What a file is, is seen from its content.

An index of offsets is made once when a file is opened; a row is read from the disk when it is asked for. A row that is
itself a list (the packed lists of qwen-vl-finetune) counts as its elements.
"""

import importlib
import json
import mmap
import re
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from foveal.core.errors import InputError, MissingExtraError

BOM = b"\xef\xbb\xbf"
# Whole strings, so that brackets inside them do not count.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


class DataError(InputError):
    """A data set, or one sample of it, is not what it has to be. `kind` is what doctors group it by."""

    def __init__(self, message: str, kind: str = "broken record") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Row:
    """A record, where it stands (for errors), and the files that lie beside it in an archive."""

    record: dict[str, Any]
    where: str
    files: Mapping[str, bytes] = field(default_factory=dict)


@runtime_checkable
class Rows(Protocol):
    """Rows number 0 to `len(rows) - 1` of a file of kind `container`."""

    @property
    def path(self) -> Path: ...

    @property
    def container(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class JsonRows:
    """Rows of JSON lines, or the elements of one JSON list."""

    def __init__(self, path: Path, container: str) -> None:
        self.path, self.container = path, container
        self._starts, self._stops = array("q"), array("q")
        self._lines, self._subs = array("q"), array("q")
        for start, stop, line, text in _lines(path) if container == "jsonl" else _elements(path):
            packed = text[:1] == b"["
            for sub in range(len(_parsed(text, self._where(line, -1)))) if packed else (-1,):
                for column, value in zip(
                    (self._starts, self._stops, self._lines, self._subs), (start, stop, line, sub), strict=True
                ):
                    column.append(value)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        start, stop, sub = self._starts[index], self._stops[index], self._subs[index]
        where = self._where(self._lines[index], sub)
        with self.path.open("rb") as file:
            file.seek(start)
            value = _parsed(file.read(stop - start), where)
        record = value if sub < 0 else value[sub]
        if not isinstance(record, dict):
            raise DataError(f"{where} holds a JSON {type(record).__name__}; expected an object for each sample.")
        return Row(record=record, where=where)

    def _where(self, line: int, sub: int) -> str:
        place = f":{line}" if self.container == "jsonl" else f"[{line}]"
        return f"{self.path.name}{place}{f'[{sub}]' if sub >= 0 else ''}"


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no UTF-8 (byte {error.start}); save the file as UTF-8.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}.") from None


def _lines(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            at = start + (len(BOM) if number == 1 and line.startswith(BOM) else 0)
            start += len(line)
            text = line[at - start :] if at > start - len(line) else line
            if text.strip():
                yield at, start, number, text.strip()


def _elements(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """Objects and lists one level below the outermost list; the file is looked through, never held."""
    depth, begun, number = 0, 0, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for token in _TOKEN.finditer(content):
            letter = content[token.start()]
            if letter in b"[{":
                if depth == 1:
                    begun = token.start()
                depth += 1
            elif letter in b"]}":
                depth -= 1
                if depth == 1:
                    yield begun, token.end(), number, content[begun : token.end()]
                    number += 1
                if depth == 0:
                    if content[token.end() :].strip():
                        raise DataError(f"{path.name} has more after the end of its list; is it two files in one?")
                    return
    raise DataError(f"{path.name} ends in the middle of its list, after {number} samples; was it cut?")


class ParquetRows:
    """Rows of a parquet file, read by row groups; the last groups asked for are kept."""

    container = "parquet"

    def __init__(self, path: Path) -> None:
        self.path = path
        parquet = _parquet()
        try:
            with parquet.ParquetFile(path) as file:
                metadata = file.metadata
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise DataError(f"{path.name} is a damaged parquet file: {error}.") from None
        self._ends = array("q")
        total = 0
        for group in range(metadata.num_row_groups):
            total += metadata.row_group(group).num_rows
            self._ends.append(total)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        group = next(g for g, end in enumerate(self._ends) if index < end)
        first = self._ends[group - 1] if group else 0
        status = self.path.stat()
        table = _row_group(self.path, group, (status.st_mtime_ns, status.st_size))
        (record,) = table.slice(index - first, 1).to_pylist()
        return Row(record=_without_nothing(record), where=f"{self.path.name}[{index}]")


@lru_cache(maxsize=4)
def _row_group(path: Path, group: int, version: tuple[int, int]) -> Any:  # noqa: ARG001 (a new file is no old one)
    with _parquet().ParquetFile(path) as file:
        return file.read_row_group(group)


def _parquet() -> Any:
    return arrow("pyarrow.parquet")


def arrow(module: str) -> Any:
    """A module of pyarrow, which only parquet files need."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError("parquet files need pyarrow; install it with: pip install 'foveal[train]'") from None


def _without_nothing(value: Any) -> Any:
    """Parquet gives every row all columns, with None where there was nothing."""
    if isinstance(value, dict):
        return {k: _without_nothing(v) for k, v in value.items() if v is not None}
    return [_without_nothing(v) for v in value] if isinstance(value, list) else value


class TarRows:
    """Groups of neighbouring members with the same name up to the first dot (webdataset): the record from a `json`
    member, or a caption from a `txt` member, and the other members as files."""

    container = "webdataset"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._groups: list[tuple[str, list[tuple[str, int, int]]]] = []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    if not member.isreg():
                        raise DataError(f"{path.name}: {member.name!r} is a link or device; a shard has files only.")
                    folder, _, base = member.name.rpartition("/")
                    stem, _, kind = base.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if not self._groups or self._groups[-1][0] != key:
                        self._groups.append((key, []))
                    self._groups[-1][1].append((kind.lower(), member.offset_data, member.size))
        except tarfile.TarError as error:
            raise DataError(f"{path.name} is a damaged tar file: {error}.") from None

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Row:
        key, members = self._groups[index]
        where = f"{self.path.name}:{key}"
        files: dict[str, bytes] = {}
        with self.path.open("rb") as file:
            for kind, offset, size in members:
                if kind in files:
                    raise DataError(f"{where} has two members of kind {kind!r}; names must differ after the first dot.")
                file.seek(offset)
                files[kind] = file.read(size)
                if len(files[kind]) != size:
                    raise DataError(f"{where}: the shard ends in the middle of {kind!r}; was it cut?")
        record: dict[str, Any] = {}
        if "json" in files:
            record = _parsed(files.pop("json"), f"{where}.json")
            if not isinstance(record, dict):
                raise DataError(f"{where}.json holds a JSON {type(record).__name__}; expected an object.")
        if "txt" in files:
            try:
                record.setdefault("caption", files.pop("txt").decode("utf-8").strip())
            except UnicodeDecodeError:
                raise DataError(f"{where}.txt is no UTF-8.") from None
        record.setdefault("id", key)
        return Row(record=record, where=where, files=files)


def _is_line(path: Path) -> bool:
    """Whether the first line is a whole list by itself, with more after it."""
    with path.open("rb") as file:
        line = file.readline(1 << 26)
        if not line.endswith(b"\n") or not file.read(1):
            return False
    try:
        return isinstance(json.loads(line.removeprefix(BOM)), list)
    except ValueError:
        return False


def open_rows(path: Path) -> Rows:
    """The rows of a file, whatever it is called.

    Raises `DataError` for a file that is missing, empty, compressed, cut, or of no known kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}.") from None
    if head[:4] == b"PAR1":
        return ParquetRows(path)
    if head[257:262] == b"ustar" or (len(head) >= 512 and head[257:262] == b"\0" * 5 and head[:1] not in b"[{\0"):
        return TarRows(path)
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PK", "zip"), (b"BZh", "bzip2")):
        if head.startswith(magic):
            raise DataError(f"{path.name} is compressed ({name}): its rows have no addresses. Unpack it first.")
    text = head.removeprefix(BOM).lstrip()
    if text[:1] == b"[":
        return JsonRows(path, "jsonl" if _is_line(path) else "json")
    if text[:1] == b"{":
        return JsonRows(path, "jsonl")
    what = "is empty" if not text else "is neither JSON, JSON lines, parquet nor tar"
    raise DataError(f"{path.name} {what}; see `foveal data --help` for what is read.")
