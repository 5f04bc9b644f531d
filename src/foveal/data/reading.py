"""`Reading`: one record on its way to a `Sample`. Every key is asked for or known; what is left over is an error."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveal.core.box import Box, Space
from foveal.core.errors import InputError, neighbours
from foveal.data.rows import DataError, Row
from foveal.data.sample import MEDIA, Sample, normal

IDS = ("id", "sample_id", "question_id", "uid", "_id")
NOTES = (
    *("source", "dataset", "data_source", "license", "url", "split", "category", "model", "metadata"),
    *("width", "height", "image_id", "ref_id", "ann_id", "sent_id", "num_tokens"),
)
"""Keys that data sets have beside the conversation; they are carried along in `Sample.extra`."""


@dataclass(kw_only=True)
class Settings:
    """How a file is read.

    Attributes:
        root: folder that relative media paths start from.
        keep: further keys of records that are carried along; "*" for all.
        space: the units of boxes that records write as numbers in JSON answers (`bbox_2d`); None leaves these as words.
        prefix: of the ids of records without one, which are their numbers.
        mend: repair what can be repaired and note it, for doctors; else it is an error.
    """

    root: str
    keep: frozenset[str] = frozenset()
    space: Space | None = None
    prefix: str = ""
    mend: bool = False


@dataclass(kw_only=True)
class Reading:
    """One record. `mended` collects (kind, what was repaired) where `settings.mend` allows it."""

    row: Row
    number: int
    set: str
    settings: Settings
    mended: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = dict(self.row.record)
        self._known: list[str] = []
        self.id = str(self.first(*IDS, default=f"{self.settings.prefix}{self.number}"))

    def __str__(self) -> str:
        return f"{self.row.where} (id {self.id!r})"

    def first(self, *names: str, default: Any = None) -> Any:
        """The value of the first of these keys that the record has; two of them are an error."""
        self._known += names
        found = [n for n in names if n in self._left]
        if len(found) > 1 and names is not IDS:
            raise self.error(f"{' and '.join(map(repr, found))} say the same thing; keep one.", "unknown key")
        return self._left.pop(found[0]) if found else default

    def error(self, message: str, kind: str = "broken record") -> DataError:
        return DataError(f"{self}: {message}", kind)

    def problem(self, message: str, kind: str) -> None:
        """Something that can be repaired: noted where this is wanted, else an error."""
        if not self.settings.mend:
            raise self.error(f"{message} `foveal data doctor --fix` repairs it.", kind)
        self.mended.append((kind, message))

    def sample(self, messages: Sequence[Mapping[str, Any]]) -> Sample:
        """The finished sample; `DataError` for keys that nobody asked for."""
        extra = self.first("extra", default={})
        if isinstance(extra, str):  # in parquet
            try:
                extra = json.loads(extra)
            except ValueError:
                raise self.error("'extra' is text that is no JSON.") from None
        if not isinstance(extra, dict):
            raise self.error(f"'extra' is {type(extra).__name__}; expected an object.")
        notes = {key: self._left.pop(key) for key in NOTES if key in self._left}
        every = "*" in self.settings.keep
        notes |= {key: self._left.pop(key) for key in list(self._left) if every or key in self.settings.keep}
        for key in self._left:
            raise self.error(
                f"unknown key {key!r}; {neighbours(str(key), {*self._known, *NOTES})} "
                "Carry it along with keep= (--keep), or take it out.",
                "unknown key",
            )
        try:
            made = normal(messages, str(self))
        except DataError:
            raise
        except InputError as error:
            raise DataError(str(error)) from None
        return Sample(id=self.id, messages=made, set=self.set, where=self.row.where, extra={**extra, **notes})

    def medium(self, value: Any) -> str | bytes:
        """A path from the root of media, an address as it is, or the bytes that are given or lie beside the record."""
        if isinstance(value, Mapping) and set(value) <= {"bytes", "path"} and value:
            value = value["bytes"] if "bytes" in value else value["path"]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"a medium is {value!r:.60}; expected a path, or {{'bytes', 'path'}}.")
        if value in self.row.files:
            return self.row.files[value]
        base, stem = value.rpartition("/")[2], self.row.where.rpartition("/")[2].rpartition(":")[2]
        if base.partition(".")[0] == stem and base.partition(".")[2].lower() in self.row.files:
            return self.row.files[base.partition(".")[2].lower()]
        if "://" in value[:16] or value[:5].lower() == "data:":
            return value
        return os.path.normpath(os.path.join(self.settings.root, value))  # noqa: PTH118 (text in, text out)

    def media(self, *names: str) -> list[str | bytes]:
        """Media under the first of these keys: one, or a list."""
        value = self.first(*names, default=[])
        several = value if isinstance(value, list) else [value]
        return [self.medium(v) for v in several]

    def numbers(self, value: Any) -> list[float]:
        """A list of finite numbers, as boxes are written."""
        fine = isinstance(value, list | tuple) and all(
            isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in value
        )
        if not fine:
            raise self.error(f"a box is {value!r:.80}; expected a list of 4 numbers, or 8 for four points.", "box")
        return [float(v) for v in value]

    def words(self, value: Any, key: str) -> str:
        """A text that is not empty."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{key} is {value!r:.80}; expected words.", "box")
        return value

    def box(self, label: str, numbers: Sequence[float], space: Space, image: int) -> Box:
        """A box of four numbers (left, top, right, bottom) or a region of eight (four points)."""
        values = tuple(self.numbers(numbers))
        if len(values) == 8:
            xs, ys = values[::2], values[1::2]
            corners = (min(xs), min(ys), max(xs), max(ys))
            return Box(label=label, corners=corners, space=space, image=image, points=values)
        if len(values) != 4:
            raise self.error(f"a box is {list(numbers)}; expected 4 numbers, or 8 for four points.", "box")
        x1, y1, x2, y2 = values
        if x1 > x2 or y1 > y2:
            self.problem(f"box {list(numbers)} has left > right or top > bottom.", "box inverted")
        ordered = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        return Box(label=label, corners=ordered, space=space, image=image)


def pools(reading: Reading, **keys: Sequence[str]) -> dict[str, list[Any]]:
    """Media of a record by kind, waiting for their places. Image files beside the record that nothing names are its
    images."""
    found: dict[str, list[Any]] = {kind: reading.media(*names) for kind, names in keys.items()}
    if not any(found.values()) and reading.row.files:
        found["image"] = files_beside(reading)
    return found


def files_beside(reading: Reading) -> list[Any]:
    """The files beside a record in an archive, in the order of the numbers in their names."""
    return [reading.row.files[k] for k in sorted(reading.row.files, key=_natural)]


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return (int(digits) if digits else -1, name)


def place_media(reading: Reading, turns: list[dict[str, Any]], pool: dict[str, list[Any]]) -> None:
    """Puts media into their places in the turns; `{"type": "place", "kind": "image"}` is such a place.

    Raises `DataError` where their numbers differ.
    """
    for kind in MEDIA:
        have = pool.get(kind, [])
        places = [p for t in turns for p in t["content"] if p["type"] == "place" and p["kind"] == kind]
        if have and not places:
            reading.problem(
                f"{len(have)} {kind}s but no <{kind}> in the text; put <{kind}> where it belongs.", "placeholders"
            )
            first = next((t for t in turns if t["role"] == "user"), turns[0])
            first["content"][:0] = places = [{"type": "place", "kind": kind} for _ in have]
        if len(have) != len(places):
            raise reading.error(
                f"{len(have)} {kind}s but {len(places)} placeholders <{kind}>; add or drop one.", "placeholders"
            )
        for place, source in zip(places, have, strict=True):
            place.clear()
            place |= {"type": kind, kind: source}


def locate_boxes(turns: list[dict[str, Any]]) -> None:
    """Boxes that do not say their image lie in the last medium before them (the first where there is none before)."""
    from dataclasses import replace

    seen = 0
    for turn in turns:
        for i, part in enumerate(turn["content"]):
            if part["type"] in MEDIA:
                seen += 1
            elif part["type"] == "box" and part["box"].image < 0:
                turn["content"][i] = {"type": "box", "box": replace(part["box"], image=max(0, seen - 1))}
