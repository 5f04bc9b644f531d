"""Boxes and points as JSON, the way of Qwen2.5-VL (pixels of the processed image) and Qwen3-VL (thousandths).

    ```json
    [
        {"bbox_2d": [120, 34, 560, 398], "label": "dog"},
        {"point_2d": [80, 91], "label": "ear"}
    ]
    ```

Sources: Qwen2.5-VL paper, section 2.2.1 (grounding data), and the releases' own examples. Reading takes objects
with these keys wherever they stand in an answer, in a fence, a list, or bare. Other JSON stays words.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foveal.core.box import Box, ImageView, Point, Space
from foveal.processing.grounding import Grounded, view_of, whole_corners
from foveal.processing.segments import Segment, TextSegment

_COUNTS = {"bbox_2d": 4, "point_2d": 2}
"""Keys of coordinates -> how many numbers they hold."""
_LABELS = ("label", "text_content")

# Repeats are bounded so that matching takes linear time.
_LONGEST_GAP = 40
_GAP = rf"\s{{0,{_LONGEST_GAP}}}"
_MAY_BEGIN = re.compile(r"[`\[{]")
_OPENING = re.compile(rf"(?:```(?:json)?{_GAP})?(?:\[{_GAP})?\{{")
_OPENING_BEGUN = re.compile(rf"`{{1,3}}|```(?:j|js|jso|json)|```(?:json)?{_GAP}(?:\[{_GAP})?|\[{_GAP}")
_CLOSING_BEGUN = re.compile(rf"{_GAP}`{{0,3}}")
_NUMBER = r"\s{0,9}([+-]?\d{1,6}(?:\.\d{1,9})?)\s{0,9}"
_LOOSE = {
    key: re.compile(rf"""["']?{key}["']?\s{{0,9}}:\s{{0,9}}\[{",".join([_NUMBER] * count)}\]?""", re.ASCII)
    for key, count in _COUNTS.items()
}
_LOOSE_LABEL = re.compile(
    r"""["']?(?:label|text_content)["']?\s{0,9}:\s{0,9}["'](.*?)(?:["']\s{0,9}[,}\]]|["']?\s{0,9}\Z)""", re.DOTALL
)
_ONLY_SYNTAX = re.compile(r"""[\s{}\[\],"']*""")


@dataclass(frozen=True, kw_only=True)
class JsonBoxes:
    """JSON with whole numbers in `space`. Labels are text, so no special token is needed."""

    space: Space

    @property
    def specials(self) -> tuple[str, ...]:
        return ()

    def render(self, boxes: Sequence[Box], views: Sequence[ImageView]) -> list[Segment]:
        """Raises `InputError` for a box of an image that is not there, or one that passes its image's edge."""
        rows = []
        for box in boxes:
            numbers = list(whole_corners(box, view_of(box, views), self.space))
            label = f', "label": {json.dumps(box.label, ensure_ascii=False)}' if box.label else ""
            rows.append(f'\t{{"bbox_2d": {json.dumps(numbers)}{label}}}')
        return [TextSegment(text="```json\n[\n" + ",\n".join(rows) + "\n]\n```")] if rows else []

    def reader(self, view: ImageView | None, image: int) -> "JsonReader":
        return JsonReader(self.space, view, image)


class JsonReader:
    """One pass over an answer, letter by letter. What may be part of a box is held back until it is certain."""

    def __init__(self, space: Space, view: ImageView | None, image: int) -> None:
        self.space, self.view, self.image = space, view, image
        self.text: list[str] = []
        self.boxes: list[Box] = []
        self.points: list[Point] = []
        self.broken: list[str] = []
        self.parts: list[str] = []
        self._state: Callable[[str], None] = self._words
        self._held: list[str] = []
        self._fence = self._list = self._labelled = False
        self._depth, self._quoted, self._escaped, self._empty = 0, False, False, False
        self._opening = 0  # letters of `_held` before the object

    def take(self, segment: Segment) -> None:
        """Reads one more segment of the answer; only text can hold JSON."""
        if isinstance(segment, TextSegment):
            self.parts.append(segment.text)
            at, text = 0, segment.text
            while at < len(text):
                if self._state == self._words:
                    begun = _MAY_BEGIN.search(text, at)
                    stop = len(text) if begun is None else begun.start()
                    self._say(text[at:stop])
                    at = stop
                if at < len(text):
                    self._state(text[at])
                    at += 1

    def finish(self) -> Grounded:
        """What was read; an object that has not ended gives its box all the same, flagged "unclosed"."""
        if self._state == self._object:
            self._recover("".join(self._held[self._opening :]), "unclosed", "".join(self._held[: self._opening]))
        elif self._state == self._start:
            self._say("".join(self._held))
        # A list's separators and its closing are no words.
        self._held, self._state = [], self._words
        return Grounded(
            text="".join(self.text),
            boxes=tuple(self.boxes),
            points=tuple(self.points),
            broken=tuple(self.broken),
            parts=("".join(self.parts),) if any(self.parts) else (),
        )

    # States. Each takes one letter.

    def _words(self, letter: str) -> None:
        if _MAY_BEGIN.match(letter):
            self._held, self._state = [], self._start
            self._start(letter)
        else:
            self._say(letter)

    def _start(self, letter: str) -> None:
        """Before an object: a fence, a bracket, or nothing."""
        self._held.append(letter)
        begun = "".join(self._held)
        if _OPENING.fullmatch(begun):
            self._fence, self._list, self._labelled = begun.startswith("`"), "[" in begun, False
            self._begin_object(len(begun) - 1)
        elif not _OPENING_BEGUN.fullmatch(begun):
            self._release(letter)

    def _begin_object(self, opening: int) -> None:
        self._opening, self._state = opening, self._object
        self._depth, self._quoted, self._escaped, self._empty = 1, False, False, True

    def _object(self, letter: str) -> None:
        """Within an object, up to its closing brace."""
        self._held.append(letter)
        if self._empty and letter not in " \t\r\n":
            self._empty = False
            if letter not in "\"'}":  # a brace that opens no JSON
                self._release(letter)
                return
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif letter == "\\":
                self._escaped = True
            elif letter in '"\n':  # JSON has no line break in a string: a quote was missing
                self._quoted = False
        elif letter == '"':
            self._quoted = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._end_object()

    def _end_object(self) -> None:
        whole, opening = "".join(self._held[self._opening :]), "".join(self._held[: self._opening])
        self._held = []
        try:
            value = json.loads(whole)
            found: list[tuple[str, list[float], str]] = []
            damaged: list[str] = []
            rest = _taken_out(value, found, damaged)
        except (ValueError, RecursionError):
            self._after(self._recover(whole, "malformed", opening))
            return
        if damaged:
            self.broken.append(whole)
        if not found:
            self._say(opening + whole)
            self._after(False)
            return
        for kind, numbers, label in found:
            self._add(kind, numbers, label, ())
        words = next((v for k, v in rest.items() if k in _LABELS and isinstance(v, str)), None)
        self._label((json.dumps(rest, ensure_ascii=False) if rest else "") if words is None or len(rest) > 1 else words)
        self._after(True)

    def _after(self, boxes: bool) -> None:
        """What comes behind an object."""
        self._held = []
        if not boxes:
            self._fence = self._list = False
        self._state = self._between if self._list else self._closing if self._fence else self._words

    def _between(self, letter: str) -> None:
        """In a list, behind an object."""
        self._held.append(letter)
        comma = "," in self._held[:-1]
        if letter == "{":
            self._begin_object(len(self._held) - 1)
        elif letter == "]" and self._fence:
            self._held, self._state = [], self._closing
        elif letter == "]":
            self._held, self._state = [], self._words
        elif len(self._held) > _LONGEST_GAP or not (letter.isspace() or (letter == "," and not comma)):
            self._release(letter)

    def _closing(self, letter: str) -> None:
        """Behind the last object of a fence."""
        self._held.append(letter)
        tail = "".join(self._held)
        if tail.endswith("```"):
            self._held, self._state = [], self._words
        elif not _CLOSING_BEGUN.fullmatch(tail):
            self._release(letter)

    # What the states do.

    def _release(self, letter: str) -> None:
        """What was held is words after all; its last letter may begin something."""
        self._say("".join(self._held[:-1]))
        self._held, self._state = [], self._words
        self._words(letter)

    def _say(self, words: str) -> None:
        if words:
            self.text.append(words)

    def _label(self, words: str) -> None:
        if words:
            self._say(", " + words if self._labelled and self._list else words)
            self._labelled = True

    def _recover(self, damaged: str, flag: str, opening: str) -> bool:
        """Takes what boxes it can out of JSON that cannot be parsed; the rest stays words. Whether there was one."""
        chunks = [(chunk, _loose(chunk)) for chunk in re.split(r"(?=\{)", damaged) if chunk]
        if not any(found for _, found in chunks):
            if _mentions(damaged):
                self.broken.append(damaged)
            self._say(opening + damaged)
            return False
        for chunk, found in chunks:
            if found is None:
                if _mentions(chunk):
                    self.broken.append(chunk)
                self._say(chunk)
                continue
            kind, numbers, rest = found
            named = _LOOSE_LABEL.search(rest)
            label = named[1] if named else ""
            self._add(kind, numbers, label, (flag,))
            without = rest if named is None else rest[: named.start()] + rest[named.end() :]
            self._label(label if _ONLY_SYNTAX.fullmatch(without) else rest)
        return True

    def _add(self, kind: str, numbers: list[float], label: str, flags: tuple[str, ...]) -> None:
        view = self.view
        if view is None:
            # The image's size is unknown: only what lies before its first pixel can be clipped in pixels.
            view, flags = ImageView(original=(10**6, 10**6), processed=(10**6, 10**6)), (*flags, "no_image")
        label = label.strip()
        if kind == "point_2d":
            point = Point.mended(label, (numbers[0], numbers[1]), self.space, view, self.image)
            point = point if self.view is None else point.to(Space.ORIGINAL_PX, view)
            self.points.append(replace(point, flags=point.flags + flags))
        else:
            x1, y1, x2, y2 = numbers
            box = Box.mended(label, (x1, y1, x2, y2), self.space, view, self.image)
            box = box if self.view is None else box.to(Space.ORIGINAL_PX, view)
            self.boxes.append(replace(box, flags=box.flags + flags))


def _mentions(text: str) -> bool:
    return any(key in text for key in _COUNTS)


def _taken_out(value: Any, found: list[tuple[str, list[float], str]], damaged: list[str]) -> Any:
    """`value` without coordinates: they go to `found` as (key, numbers, label); `damaged` names those that stay."""
    if isinstance(value, list):
        return [_taken_out(v, found, damaged) for v in value]
    if not isinstance(value, dict):
        return value
    label = next((str(value[k]) for k in _LABELS if isinstance(value.get(k), str | int)), "")
    rest = {}
    for key, inner in value.items():
        if key in _COUNTS and _are_numbers(inner, _COUNTS[key]):
            found.append((key, [float(v) for v in inner], label))
            continue
        if key in _COUNTS:
            damaged.append(key)
        rest[key] = _taken_out(inner, found, damaged)
    return rest


def _are_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        and all(math.isfinite(v) and abs(v) < 1e9 for v in value)
    )


def _loose(chunk: str) -> tuple[str, list[float], str] | None:
    """The first coordinates in damaged JSON: (key, numbers, what is left without them)."""

    for key, pattern in _LOOSE.items():
        if match := pattern.search(chunk):
            return key, [float(n) for n in match.groups()], chunk[: match.start()] + chunk[match.end() :]
    return None
