"""Marks in texts: places of media, names of things, boxes. Texts become parts, and parts texts again.

Three sets of marks occur in data: Qwen-VL's (`<img>`, `<ref>`, `<box>`, `<quad>`), Qwen2-VL's tokens
(`<|object_ref_start|>`, `<|box_start|>`), and ms-swift's places (`<ref-object>`, `<bbox>`) that `objects` fills.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.core.box import Box, Space
from foveal.data.reading import Reading
from foveal.data.sample import MEDIA

_NUMBER = r"\s*([+-]?\d{1,9}(?:\.\d{1,12})?)\s*"
_POINT = re.compile(rf"\({_NUMBER},{_NUMBER}\)")


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How one format marks things. Pairs are opening and closing words; None where it has no such mark."""

    ref: tuple[str, str] | None = None
    box: tuple[str, str] | None = None
    quad: tuple[str, str] | None = None
    media: Mapping[str, str] | None = None
    """A medium's kind -> the word that keeps its place."""
    named: tuple[str, str] | None = None
    """Words around the path of a picture."""
    slots: tuple[str, str] | None = None
    """Words whose place a name and a box take."""

    @property
    def words(self) -> list[str]:
        """All words that mean something, so that no other text may hold them."""
        pairs = [p for p in (self.ref, self.box, self.quad, self.named, self.slots) if p]
        return [*dict.fromkeys([w for p in pairs for w in p] + list((self.media or {}).values()))]

    def split(self, text: str) -> list[tuple[str, str]]:
        """The text as (kind, content): "text", "ref", "box", "quad", "named", "slot ref", "slot box", or a medium."""
        found: list[tuple[str, str]] = []
        at = 0
        for match in self._pattern().finditer(text):
            if match.start() > at:
                found.append(("text", text[at : match.start()]))
            found.append(self._kind(match[0]))
            at = match.end()
        return [*found, ("text", text[at:])] if at < len(text) else found

    def _pairs(self) -> list[tuple[str, tuple[str, str]]]:
        kinds = ("ref", "box", "quad", "named")
        return [(k, pair) for k in kinds if (pair := getattr(self, k)) is not None]

    def _pattern(self) -> re.Pattern[str]:
        before = {"named": r"(?:Picture \d+: ?)?"}  # Qwen-VL counts its pictures
        choices = [f"{before.get(k, '')}{re.escape(a)}.*?{re.escape(b)}" for k, (a, b) in self._pairs()]
        choices += [re.escape(word) for word in (*(self.slots or ()), *(self.media or {}).values())]
        return re.compile("|".join(choices) or r"(?!)", re.DOTALL)

    def _kind(self, found: str) -> tuple[str, str]:
        for kind, (start, stop) in self._pairs():
            if found.endswith(stop):
                return kind, found[found.index(start) + len(start) : -len(stop)]
        for name, word in zip(("slot ref", "slot box"), self.slots or (), strict=False):
            if found == word:
                return name, ""
        return next(kind for kind, word in (self.media or {}).items() if found == word), ""


TOKENS = Marks(
    ref=("<|object_ref_start|>", "<|object_ref_end|>"),
    box=("<|box_start|>", "<|box_end|>"),
    quad=("<|quad_start|>", "<|quad_end|>"),
    media={"image": "<image>", "video": "<video>"},
)
TAGS = Marks(ref=("<ref>", "</ref>"), box=("<box>", "</box>"), quad=("<quad>", "</quad>"), named=("<img>", "</img>"))
SWIFT = Marks(ref=TOKENS.ref, box=TOKENS.box, quad=TOKENS.quad, media=TOKENS.media, slots=("<ref-object>", "<bbox>"))


def parts_of(
    reading: Reading,
    text: str,
    marks: Marks,
    *,
    slots: tuple[Iterable[str], Iterable[Box]] = ((), ()),
    drop_newline: bool = False,
) -> list[dict[str, Any]]:
    """A turn's text as parts. Places of media are `{"type": "place", "kind": ...}`; boxes of marks count thousandths
    and do not say their image yet (-1). A name before boxes is their label, any other is a `ref`.

    `drop_newline`: a line's end right after the place of a medium belongs to it.
    """
    names, boxes = iter(slots[0]), iter(slots[1])
    parts: list[dict[str, Any]] = []
    pending: str | None = None  # a name for which no box has come yet
    label: str | None = None  # the name that the next box takes
    pieces = marks.split(text)
    for number, (kind, content) in enumerate(pieces):
        if kind in ("box", "quad", "slot box"):
            if kind == "slot box":
                box = _next(reading, boxes, "bbox", "<bbox>")
                made = Box(**{**vars(box), "label": label or box.label})
            else:
                made = reading.box(label or "", _numbers(reading, content, kind), Space.RELATIVE_1000, -1)
            parts.append({"type": "box", "box": made})
            pending = None
            continue
        if pending is not None:
            parts.append({"type": "ref", "ref": pending})
        pending = label = None
        if kind in ("ref", "slot ref"):
            name = content if kind == "ref" else _next(reading, names, "ref", "<ref-object>")
            if not name.strip():
                raise reading.error("a name for a region is empty.", "box")
            pending = label = name
        elif kind == "text":
            after = number and pieces[number - 1][0] in (*(marks.media or ()), "named")
            parts.append({"type": "text", "text": content.removeprefix("\n") if drop_newline and after else content})
        elif kind == "named":
            parts.append({"type": "image", "image": reading.medium(content)})
        else:
            parts.append({"type": "place", "kind": kind})
    if pending is not None:
        parts.append({"type": "ref", "ref": pending})
    return parts


def _next(reading: Reading, values: Any, key: str, word: str) -> Any:
    try:
        return next(values)
    except StopIteration:
        raise reading.error(f"more {word} in the text than entries in objects.{key}.", "placeholders") from None


def _numbers(reading: Reading, content: str, kind: str) -> list[float]:
    points = _POINT.findall(content)
    wanted = 4 if kind == "quad" else 2
    rest = re.sub(r"[\s,]", "", _POINT.sub("", content))
    if len(points) != wanted or rest:
        raise reading.error(f"{content!r:.80} is no {kind}; expected {wanted} points (x,y).", "box")
    return [float(v) for point in points for v in point]


def text_of(
    parts: Sequence[Mapping[str, Any]],
    marks: Marks,
    *,
    refuse: Callable[[str], Exception],
    name: Callable[[str], str] | None,
    box: Callable[[Box], str],
    medium: Callable[[Mapping[str, Any]], str],
    newline: bool = False,
) -> str:
    """Parts as one text, the way back of `parts_of`. `refuse` makes the error for what the marks cannot carry;
    `name`, `box` and `medium` write those (`name` is None where regions have no names)."""

    def named(label: str) -> str:
        if name is None:
            raise refuse("it has names of regions")
        for word in marks.words:
            if word in label:
                raise refuse(f"a name of a region holds {word!r}, which is a mark in this format")
        return name(label)

    pieces: list[str] = []
    label: str | None = None  # of the box before, whose name also holds for this one
    for number, part in enumerate(parts):
        kind = part["type"]
        if kind != "box":
            label = None
        if kind == "text":
            text = part["text"]
            for word in marks.words:
                if word in text:
                    raise refuse(f"its words hold {word!r}, which is a mark in this format")
            if newline and number and parts[number - 1]["type"] in MEDIA:
                opens = all(p["type"] in MEDIA for p in parts[:number]) and not text.startswith((" ", ",", "."))
                text = f"\n{text}" if opens or text.startswith("\n") else text
            pieces.append(text)
        elif kind == "ref":
            pieces.append(named(part["ref"]))
        elif kind == "box":
            found: Box = part["box"]
            if found.label != label:
                if not found.label and pieces and parts[number - 1]["type"] in ("box", "ref"):
                    raise refuse("it has a box without a name right after a name or a box with one")
                if found.label:
                    pieces.append(named(found.label))
            label = found.label
            pieces.append(box(found))
        elif kind in MEDIA:
            pieces.append(medium(part))
        else:
            raise refuse(f"it has a part of type {kind!r}")
    return "".join(pieces)
