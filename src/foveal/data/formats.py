"""All formats of records, and how the format of a file is found from its records.

What records are written in (JSON, parquet, tar) is another matter: see `rows`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.core.box import Space
from foveal.core.errors import InputError, neighbours
from foveal.data.reading import Reading, Settings, files_beside, pools
from foveal.data.rows import DataError, Rows, open_rows
from foveal.data.sample import MEDIA, Sample
from foveal.data.source import Chained, Source, checked
from foveal.data.talks import TALKS, turns_of
from foveal.data.writing import Format, Writing

_IMAGES = ("image", "img_path", "image_path", "file_name", "img")
_WORDS = ("expression", "sent", "ref", "phrase", "caption", "text")
_BOXES = ("bbox", "box", "boxes", "bboxes")
_SPACES = {space.value: space for space in Space}
LOOKED_AT = 64
"""Records that a file's format is seen from, spread over the file."""


# Our own form: messages with parts, boxes with their space. It carries everything.


def _read_messages(reading: Reading) -> Sample:
    messages = reading.first("messages")
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise reading.error("'messages' is no list of objects.")
    contents = [c if isinstance(c := m.get("content"), list) else [c] for m in messages]
    bare = any(_is_bare(part) for content in contents for part in content)
    beside = {kind: reading.media(f"{kind}s", kind) for kind in MEDIA}
    if bare and not any(beside.values()):
        beside["image"] = files_beside(reading)
    used: dict[str, set[int]] = {kind: set() for kind in MEDIA}
    made = []
    for message, content in zip(messages, contents, strict=True):
        parts = [_filled(reading, p, beside, used) if _is_bare(p) else _part(reading, p) for p in content]
        made.append({**message, "content": parts})
    for kind, have in beside.items():
        if len(used[kind]) != len(have):
            raise reading.error(f"{len(have)} {kind}s but {len(used[kind])} parts that show one.", "placeholders")
    return reading.sample(made)


def _is_bare(part: Any) -> bool:
    """Whether a part is `{"type": "image"}` without a source: the place of one of the record's `images`."""
    return (
        isinstance(part, Mapping)
        and part.get("type") in MEDIA
        and {k for k in part if part[k] is not None}
        <= {
            "type",
            "index",
        }
    )


def _filled(
    reading: Reading, part: Mapping[str, Any], beside: Mapping[str, list[Any]], used: dict[str, set[int]]
) -> dict[str, Any]:
    """Such a part with the medium that it shows: number `index`, or the next."""
    kind = part["type"]
    number = part.get("index")
    if number is None:
        number = len(used[kind])
    if not isinstance(number, int) or not 0 <= number < len(beside[kind]):
        raise reading.error(f"a part shows {kind} {number!r} of {len(beside[kind])}.", "placeholders")
    used[kind].add(number)
    return {"type": kind, kind: beside[kind][number]}


def _part(reading: Reading, part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    part = {k: v for k, v in part.items() if v is not None}
    for kind in MEDIA:
        found = part.get(kind)
        if isinstance(found, str) or (isinstance(found, Mapping) and set(found) <= {"bytes", "path"}):
            return {**part, kind: reading.medium(found)}
        if isinstance(found, list):
            return {**part, kind: [reading.medium(frame) for frame in found]}
        address = part.get(f"{kind}_url")
        if isinstance(address, str) or (isinstance(address, Mapping) and isinstance(address.get("url"), str)):
            url = address if isinstance(address, str) else address["url"]
            said = {k: v for k, v in part.items() if k not in ("type", f"{kind}_url")}
            detail = {} if isinstance(address, str) else {k: v for k, v in address.items() if k != "url"}
            if not detail:
                return {"type": kind, kind: reading.medium(url), **said}
            return {**part, f"{kind}_url": {**detail, "url": reading.medium(url)}}
    if isinstance(part.get("box"), Mapping):
        return {**part, "box": _box(reading, part["box"])}
    return part


def _box(reading: Reading, value: Mapping[str, Any]) -> Any:
    known = ("label", "corners", "points", "space", "image")
    for key in value:
        if key not in known:
            raise reading.error(f"unknown key {key!r} in a box; {neighbours(str(key), known)}", "unknown key")
    label, image, numbers = value.get("label", ""), value.get("image", 0), value.get("points") or value.get("corners")
    if not isinstance(label, str) or not isinstance(image, int):
        raise reading.error(f"a box has label {label!r:.40} and image {image!r:.40}; expected words, a number.", "box")
    return reading.box(label, reading.numbers(numbers), _space(reading, value.get("space")), image)


def _space(reading: Reading, stated: Any) -> Space:
    if not isinstance(stated, str) or stated not in _SPACES:
        raise reading.error(f"a box has space {stated!r:.40}; {neighbours(str(stated), _SPACES)}", "box")
    return _SPACES[stated]


def _write_messages(sample: Sample, out: Writing) -> dict[str, Any]:
    def said(part: Mapping[str, Any]) -> dict[str, Any]:
        if part["type"] == "box":
            box = part["box"]
            value = {"label": box.label} if box.label else {}
            value |= {"points": list(box.points)} if box.points else {"corners": list(box.corners)}
            value |= {"space": box.space.value} | ({"image": box.image} if box.image else {})
            return {"type": "box", "box": value}
        kind = part["type"]
        if kind in MEDIA:
            source = part[kind]
            several = isinstance(source, list | tuple)
            return {**part, kind: [out.store(f) for f in source] if several else out.store(source)}
        return dict(part)

    messages = [{"role": m["role"], "content": [said(p) for p in m["content"]]} for m in sample.messages]
    return {"id": sample.id, "messages": messages}


# A picture with an expression and where that is (RefCOCO and its like), and a picture with a caption.


def _read_grounding(reading: Reading) -> Sample:
    pool = pools(reading, image=_IMAGES)
    words = reading.first(*_WORDS)
    boxes = reading.first(*_BOXES)
    kind, stated = reading.first("bbox_format", default="xyxy"), reading.first("box_space")
    if len(pool["image"]) != 1:
        raise reading.error(f"it has {len(pool['image'])} images; expected one ({', '.join(_IMAGES)}).")
    if not isinstance(words, str) or not words.strip():
        raise reading.error(f"it has no expression; expected one of {', '.join(_WORDS)}.")
    if kind not in ("xyxy", "xywh"):
        raise reading.error(f"bbox_format is {kind!r}; expected 'xyxy' (two corners) or 'xywh' (corner and size).")
    space = (reading.settings.space or Space.ORIGINAL_PX) if stated is None else _space(reading, stated)
    if not isinstance(boxes, list) or not boxes:
        raise reading.error("its list of boxes is empty.", "box")
    content: list[dict[str, Any]] = []
    for numbers in boxes if isinstance(boxes[0], list) else [boxes]:
        values = reading.numbers(numbers)
        if kind == "xywh" and len(values) == 4:
            values = [values[0], values[1], values[0] + values[2], values[1] + values[3]]
        content.append({"type": "box", "box": reading.box(words, values, space, 0)})
    asked = [{"type": "image", "image": pool["image"][0]}, {"type": "ref", "ref": words}]
    return reading.sample([{"role": "user", "content": asked}, {"role": "assistant", "content": content}])


def _write_grounding(sample: Sample, out: Writing) -> dict[str, Any]:
    kinds = [(m["role"], [p["type"] for p in m["content"]]) for m in sample.messages]
    boxes = sample.boxes
    asks = len(kinds) == 2 and kinds[0] == ("user", ["image", "ref"])
    if not asks or kinds[1] != ("assistant", ["box"] * len(boxes)) or not boxes:
        raise out.refuse("it is not one picture, one name of a region, and its boxes as the answer")
    words = sample.parts[1]["ref"]
    if any(b.label != words for b in boxes):
        raise out.refuse("a box has another name than what was asked for")
    if len({b.space for b in boxes}) > 1:
        raise out.refuse("its boxes are in several spaces")
    rows = [list(b.points or b.corners) for b in boxes]
    record = {"id": sample.id, "image": out.medium(sample.media[0]), "expression": words, "boxes": rows}
    return record | ({} if boxes[0].space is Space.ORIGINAL_PX else {"box_space": boxes[0].space.value})


def _read_caption(reading: Reading) -> Sample:
    pool = pools(reading, image=_IMAGES)
    words = reading.first("caption", "text")
    if len(pool["image"]) != 1 or not isinstance(words, str):
        raise reading.error(f"it has {len(pool['image'])} images; expected one image and its caption.")
    asked, said = [{"type": "image", "image": pool["image"][0]}], [{"type": "text", "text": words}]
    return reading.sample([{"role": "user", "content": asked}, {"role": "assistant", "content": said}])


def _write_caption(sample: Sample, out: Writing) -> dict[str, Any]:
    kinds = [(m["role"], [p["type"] for p in m["content"]]) for m in sample.messages]
    if kinds not in ([("user", ["image"]), ("assistant", ["text"])], [("user", ["image"]), ("assistant", [])]):
        raise out.refuse("it is not one picture and its caption")
    words = "".join(p["text"] for p in sample.messages[1]["content"])
    return {"id": sample.id, "image": out.medium(sample.media[0]), "caption": words}


def _has(record: Mapping[str, Any], names: Sequence[str]) -> bool:
    return any(name in record for name in names)


FORMATS: tuple[Format, ...] = (
    Format(
        name="messages",
        help="Foveal's own and OpenAI's: messages with lists of parts; carries everything",
        fits=lambda r: "messages" in r and any(isinstance(t, Mapping) and _parted(t) for t in turns_of(r)),
        read=_read_messages,
        write=_write_messages,
    ),
    *TALKS,
    Format(
        name="grounding",
        help="RefCOCO and its like: image, expression, boxes",
        fits=lambda r: not turns_of(r) and _has(r, _BOXES),
        read=_read_grounding,
        write=_write_grounding,
    ),
    Format(
        name="caption",
        help="image and caption",
        fits=lambda r: not turns_of(r) and not _has(r, _BOXES) and _has(r, ("caption", "text")),
        read=_read_caption,
        write=_write_caption,
    ),
)


def _parted(turn: Mapping[str, Any]) -> bool:
    return isinstance(turn.get("content"), list)


def format_named(name: str) -> Format:
    """The format of this name; `InputError` names its neighbours."""
    for form in FORMATS:
        if form.name == name:
            return form
    raise InputError(f"unknown format {name!r}; {neighbours(name, [f.name for f in FORMATS])}")


def found_format(rows: Rows) -> Format:
    """The format of a file, from up to `LOOKED_AT` records: the first of `FORMATS` that one of them looks like.

    Raises `DataError` for a file without records, and for records that look like nothing known.
    """
    count = len(rows)
    if not count:
        raise DataError(f"{rows.path.name} has no samples.")
    numbers = sorted({i * (count - 1) // max(1, LOOKED_AT - 1) for i in range(LOOKED_AT)}) if count > 1 else [0]
    fits: set[str] = set()
    for number in numbers:
        try:
            record = rows[number].record
        except DataError:
            continue  # whoever reads it will be told
        found = next((f.name for f in FORMATS if f.fits(record)), None)
        if found is not None:
            fits.add(found)
        elif not fits:
            unknown = f"{rows[number].where} has the keys {', '.join(map(repr, record))}"
    if not fits:
        raise DataError(f"{unknown}, which is no known format; name it with --format if it is one.")
    return next(f for f in FORMATS if f.name in fits)


class FileSource:
    """The samples of one file."""

    def __init__(self, name: str, rows: Rows, form: Format, settings: Settings) -> None:
        self.name, self.rows, self.form, self.settings = name, rows, form, settings

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.form.read(self.reading(index))

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: the format goes by its name."""
        return {**vars(self), "form": self.form.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, form=format_named(state["form"]))

    def reading(self, index: int) -> Reading:
        """Sample number `index` before it is read; for doctors."""
        index = checked(index, len(self), self.name)
        return Reading(row=self.rows[index], number=index, set=self.name, settings=self.settings)


def open_source(
    path: str | Path,
    *,
    name: str | None = None,
    format: str | None = None,
    media: str | Path | None = None,
    keep: Sequence[str] = (),
    space: Space | str | None = None,
) -> Source:
    """A data set: a file, or a folder of shards (their order is that of their names).

    Args:
        path: JSON, JSON lines, parquet or tar; what it is is seen from its content.
        name: what the set is called; by default the file's name.
        format: of its records (see `FORMATS`); by default seen from the records.
        media: folder that relative paths of media start from; by default the file's.
        keep: keys of records that are carried along in `Sample.extra`; "*" for all that are not known.
        space: units of boxes in records that do not say: JSON boxes in answers stay words without it, and boxes of
            expressions are pixels of the file's picture.

    Raises:
        DataError: nothing is there, or its kind or format is not known.
    """
    file = Path(path)
    title = name or file.stem or str(path)
    if file.is_dir():
        shards = [f for f in sorted(file.iterdir()) if f.is_file() and f.suffix in SUFFIXES]
        if not shards:
            raise DataError(f"folder {str(path)!r} has no file that ends in {', '.join(SUFFIXES)}.")
        parts = [open_source(f, name=title, format=format, media=media or file, keep=keep, space=space) for f in shards]
        return parts[0] if len(parts) == 1 else Chained(title, parts)
    if space is not None and not isinstance(space, Space) and space not in _SPACES:
        raise InputError(f"unknown space {space!r}; {neighbours(str(space), _SPACES)}")
    rows = open_rows(file)
    settings = Settings(
        root=str(Path(media) if media is not None else file.parent),
        keep=frozenset(keep),
        space=_SPACES[space] if isinstance(space, str) else space,
    )
    form = format_named(format) if format is not None else found_format(rows)
    return FileSource(title, rows, form, settings)


SUFFIXES = (".json", ".jsonl", ".parquet", ".tar")
"""Which files of a folder are shards; each one's kind is seen from its content."""
