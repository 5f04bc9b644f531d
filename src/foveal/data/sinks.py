"""The files that records are written to: JSON, JSON lines, tar and parquet. `rows` reads them."""

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from foveal.core.errors import InputError, MediaError
from foveal.core.media import MediaBudget
from foveal.data.rows import DataError, arrow
from foveal.processing.media import open_bytes

# The most of one row group, which is what reading one sample of a parquet file costs.
_ROWS, _BYTES = 256, 1 << 24
_KINDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"))


class Sink(Protocol):
    """A file that records are written to, one after the other."""

    media: int

    def store(self, source: Any) -> Any:
        """What a record says of a medium."""
        ...

    def add(self, record: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def open_sink(target: Path, container: str, *, copy: bool, budget: MediaBudget) -> Iterator[Sink]:
    """The target as it is written: a neighbour that takes its name when all went well.

    Raises `InputError` if the target, or the folder for media beside it, exists.
    """
    beside = target.with_name(f"{target.stem}.media")
    for path in (target, beside):
        if path.exists():
            raise InputError(f"{str(path)!r} exists; name another target, nothing is written over.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{str(target.parent)!r} cannot be made a folder: {error.strerror}.") from None
    part = target.with_name(f".{target.name}.part")
    sink: Sink
    if container == "webdataset":
        sink = _Tar(part, budget)
    elif container == "parquet":
        sink = _Parquet(part, budget)
    else:
        sink = _Json(part, target, beside, copy, budget, listed=container == "json")
    try:
        yield sink
        sink.finish()
        sink.close()
        part.replace(target)
    except BaseException:
        sink.close()
        part.unlink(missing_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        raise


def content_of(source: Any, budget: MediaBudget) -> bytes:
    """The encoded bytes of a medium."""
    with open_bytes(source, budget=budget) as stream:
        return stream.read()


def suffix_of(source: Any, content: bytes) -> str:
    """What kind of file a medium is, as the end of a name: by its content, else as its own name says."""
    known = next((kind for magic, kind in _KINDS if content.startswith(magic)), "")
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        known = "webp"
    own = Path(source).suffix[1:].lower() if isinstance(source, str | os.PathLike) else ""
    return known or (own if own.isalnum() and len(own) <= 4 else "bin")


class _Json:
    """JSON lines, or one list with a record a line. Media lie in a folder beside it, or where they are."""

    def __init__(self, part: Path, target: Path, beside: Path, copy: bool, budget: MediaBudget, *, listed: bool):
        self.media = 0
        self.file = part.open("w", encoding="utf-8")
        self.target, self.beside, self.copy, self.budget, self.listed = target, beside, copy, budget, listed
        self.first = True

    def store(self, source: Any) -> str:
        self.media += 1
        if isinstance(source, str) and ("://" in source[:16] or source[:5].lower() == "data:"):
            return source
        if isinstance(source, str | os.PathLike) and not self.copy:
            path = Path(source)
            if not path.is_file():
                raise MediaError(f"{str(path)!r} does not exist; check the path.")
            return str(os.path.relpath(path, self.target.parent))
        content = content_of(source, self.budget)
        kind = suffix_of(source, content)
        self.beside.mkdir(exist_ok=True)
        path = self.beside / f"{self.media - 1:08d}.{kind}"
        path.write_bytes(content)
        return f"{self.beside.name}/{path.name}"

    def add(self, record: dict[str, Any]) -> None:
        try:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"sample {record.get('id')!r} does not fit into JSON: {error}.") from None
        before = ("[\n" if self.first else ",\n") if self.listed else ""
        self.file.write(before + line + ("" if self.listed else "\n"))
        self.first = False

    def finish(self) -> None:
        if self.listed:
            self.file.write("[]\n" if self.first else "\n]\n")

    def close(self) -> None:
        self.file.close()


class _Tar:
    """One group of members a sample: its record, and its media as key.0.jpg, key.1.jpg, ..."""

    def __init__(self, part: Path, budget: MediaBudget) -> None:
        self.media = 0
        self.archive = tarfile.open(part, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed in finish)
        self.budget, self.number, self.waiting = budget, 0, list[tuple[str, bytes]]()

    def store(self, source: Any) -> str:
        content = content_of(source, self.budget)
        name = f"{len(self.waiting)}.{suffix_of(source, content)}"
        self.waiting.append((name, content))
        self.media += 1
        return name

    def add(self, record: dict[str, Any]) -> None:
        try:
            text = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise DataError(f"sample {record.get('id')!r} does not fit into JSON: {error}.") from None
        for kind, content in [("json", text), *self.waiting]:
            member = tarfile.TarInfo(f"{self.number:08d}.{kind}")
            member.size = len(content)
            self.archive.addfile(member, BytesIO(content))
        self.number, self.waiting = self.number + 1, []

    def finish(self) -> None:
        """Nothing is waiting: every group is written at once."""

    def close(self) -> None:
        self.archive.close()


class _Parquet:
    """Columns id, messages, images, videos, objects, and all else as JSON in `extra`; media are inside."""

    def __init__(self, part: Path, budget: MediaBudget) -> None:
        self.media = 0
        pa = arrow("pyarrow")
        text, medium = pa.string(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        turn = pa.struct([("role", text), ("content", text)])
        objects = pa.struct(
            [
                ("ref", pa.list_(text)),
                ("bbox", pa.list_(pa.list_(pa.float64()))),
                ("bbox_type", text),
                ("image_id", pa.list_(pa.int64())),
            ]
        )
        self.schema = pa.schema(
            [
                ("id", text),
                ("messages", pa.list_(turn)),
                ("images", pa.list_(medium)),
                ("videos", pa.list_(medium)),
                ("objects", objects),
                ("extra", text),
            ]
        )
        self.table = pa.Table
        self.writer = arrow("pyarrow.parquet").ParquetWriter(part, self.schema)
        self.budget, self.waiting, self.bytes = budget, list[dict[str, Any]](), 0

    def store(self, source: Any) -> dict[str, Any]:
        self.media += 1
        path = Path(source).name if isinstance(source, str) and source[:5].lower() != "data:" else None
        content = content_of(source, self.budget)
        self.bytes += len(content)
        return {"bytes": content, "path": path}

    def add(self, record: dict[str, Any]) -> None:
        known = set(self.schema.names) - {"extra"}
        if not {"messages", "id"} <= set(record):
            raise InputError("parquet files are written with the records of ms-swift or ShareGPT; use --to parquet.")
        extra = {**{k: v for k, v in record.items() if k not in known and k != "extra"}, **record.get("extra", {})}
        row = {k: v for k, v in record.items() if k in known}
        self.waiting.append(row | ({"extra": json.dumps(extra, ensure_ascii=False)} if extra else {}))
        if len(self.waiting) == _ROWS or self.bytes > _BYTES:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(self.table.from_pylist(self.waiting, schema=self.schema))
        self.waiting, self.bytes = [], 0

    def finish(self) -> None:
        if self.waiting:
            self._flush()

    def close(self) -> None:
        self.writer.close()
