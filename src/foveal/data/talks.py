"""Formats that are conversations with marks in their texts: LLaVA, ShareGPT, Qwen-VL, qwen-vl-finetune, ms-swift.

Sources: LLaVA's and LLaMA-Factory's data pages, Qwen-VL's README (fine-tuning), the README of qwen-vl-finetune,
ms-swift's page on custom data sets.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from foveal.core.box import Box, Space
from foveal.core.errors import neighbours
from foveal.data.marks import SWIFT, TAGS, TOKENS, Marks, parts_of
from foveal.data.reading import Reading, locate_boxes, place_media, pools
from foveal.data.sample import MEDIA, Sample
from foveal.data.talk_writers import FENCED, FROM, talk_writer, write_json_boxes
from foveal.data.writing import Format

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


# Conversations: a list of turns, each a role and a text.


def turns_of(record: Mapping[str, Any]) -> list[Any]:
    """The list of turns of a record; empty where it has none."""
    for key in ("messages", "conversations", "conversation"):
        if isinstance(record.get(key), list):
            return list(record[key])
    return []


def _said(record: Mapping[str, Any]) -> list[str]:
    values = [t.get("value", t.get("content")) for t in turns_of(record) if isinstance(t, Mapping)]
    return [v for v in values if isinstance(v, str)]


def _holds(record: Mapping[str, Any], *words: str) -> bool:
    return any(w in text for text in _said(record) for w in words)


def _turns(reading: Reading) -> list[tuple[str, Any]]:
    """(role, text) of every turn."""
    turns = reading.first("conversations", "messages", "conversation")
    if not isinstance(turns, list) or not turns:
        raise reading.error("it has no turns; expected a list 'conversations' or 'messages'.")
    found: list[tuple[str, Any]] = []
    system = reading.first("system")
    if system:
        found.append(("system", system))
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise reading.error(f"turn {i} is {type(turn).__name__}; expected an object.")
        keys = set(turn)
        if keys in ({"from", "value"}, {"role", "content"}):
            role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
            if not isinstance(role, str) or role not in ROLES:
                raise reading.error(f"turn {i} is said by {role!r}; {neighbours(str(role), ROLES)}", "role")
            found.append((ROLES[role], text))
        elif keys in ({"human", "assistant"}, {"user", "assistant"}):
            found += [(ROLES[role], turn[role]) for role in ("human", "user", "assistant") if role in turn]
        else:
            raise reading.error(
                f"turn {i} has the keys {', '.join(map(repr, turn))}; expected 'from' and 'value', or 'role' and "
                "'content'.",
                "unknown key",
            )
    return found


def _talk(marks: Marks, *, newline: bool = False, boxes_in_json: bool = False) -> Callable[[Reading], Sample]:
    """A reader of conversations."""

    def read(reading: Reading) -> Sample:
        said = _turns(reading)
        slots = _objects(reading) if marks.slots else (iter(()), iter(()))
        space = _stated_space(reading) if boxes_in_json else None
        messages: list[dict[str, Any]] = []
        for number, (role, text) in enumerate(said):
            if not isinstance(text, str):
                raise reading.error(f"turn {number} is {type(text).__name__}; expected its text.")
            content: list[dict[str, Any]] = []
            for piece in _json_boxes(reading, text, space) if space and role == "assistant" else [text]:
                if isinstance(piece, Box):
                    content.append({"type": "box", "box": piece})
                else:
                    content += parts_of(reading, piece, marks, slots=slots, drop_newline=newline)
            messages.append({"role": role, "content": content})
        for left, key, word in zip(slots, ("ref", "bbox"), ("<ref-object>", "<bbox>"), strict=True):
            if sum(1 for _ in left):
                raise reading.error(f"objects.{key} has more entries than the text has {word}.", "placeholders")
        if marks.media:
            pool = pools(reading, image=("image", "images"), video=("video", "videos"))
            place_media(reading, messages, pool)
        _locate(reading, messages)
        return reading.sample(messages)

    return read


def _locate(reading: Reading, messages: list[dict[str, Any]]) -> None:
    """Boxes get the number of their medium; ms-swift's `image_id` counts images only."""
    locate_boxes(messages)
    parts = [p for m in messages for p in m["content"]]
    media = [p["type"] for p in parts if p["type"] in MEDIA]
    if not media and any(p["type"] == "box" for p in parts):
        raise reading.error("it has boxes but no image.", "box")


def _objects(reading: Reading) -> tuple[Iterable[str], Iterable[Box]]:
    """ms-swift's `objects`: names and boxes for the places in the text."""
    objects = reading.first("objects", default={})
    if not isinstance(objects, Mapping):
        raise reading.error(f"'objects' is {type(objects).__name__}; expected an object with 'ref' and 'bbox'.")
    known = ("ref", "bbox", "bbox_type", "image_id")
    for key in objects:
        if key not in known:
            raise reading.error(f"unknown key {key!r} in 'objects'; {neighbours(str(key), known)}", "unknown key")
    kind = objects.get("bbox_type", "real")
    if kind not in ("real", "norm1"):
        raise reading.error(f"bbox_type is {kind!r}; expected 'real' (pixels) or 'norm1' (0 to 1).", "box")
    rows, images, names = objects.get("bbox") or [], objects.get("image_id"), objects.get("ref") or []
    if not isinstance(rows, list) or not isinstance(names, list):
        raise reading.error("objects.bbox and objects.ref must be lists.", "box")
    owners = [0] * len(rows) if images is None else images
    if not isinstance(owners, list) or not all(isinstance(i, int) for i in owners):
        raise reading.error(f"objects.image_id is {owners!r:.80}; expected a list of numbers of images.", "box")
    if len(owners) != len(rows):
        raise reading.error(f"objects.image_id has {len(owners)} entries, objects.bbox {len(rows)}.", "box")
    order = re.findall(r"<image>|<video>", "\n".join(_said(reading.row.record)))
    media = [i for i, place in enumerate(order) if place == "<image>"]
    boxes = []
    for row, owner in zip(rows, owners, strict=True):
        numbers = reading.numbers(row)
        if len(numbers) == 2:
            raise reading.error(f"objects.bbox has a point {numbers}; points are not read, boxes are.", "box")
        space = Space.ORIGINAL_PX if kind == "real" else Space.RELATIVE_1000
        # Nine places keep 0.057 * 1000 from being a hair beside 57.
        scaled = numbers if kind == "real" else [round(v * 1000, 9) for v in numbers]
        boxes.append(reading.box("", scaled, space, media[owner] if 0 <= owner < len(media) else owner))
    return iter([reading.words(name, "a name in objects.ref") for name in names]), iter(boxes)


def _stated_space(reading: Reading) -> Space | None:
    stated = reading.first("box_space")
    if stated is None:
        return reading.settings.space
    try:
        return Space(stated)
    except ValueError:
        known = [s.value for s in Space]
        raise reading.error(f"box_space is {stated!r}; {neighbours(str(stated), known)}", "box") from None


def _json_boxes(reading: Reading, text: str, space: Space) -> list[str | Box]:
    """Lists of `{"bbox_2d": [...], "label": ...}` in an answer as boxes; all other words stay as they are."""
    bare = text.strip()
    if bare[:1] in "[{" and bare and (boxes := _bbox_2d(reading, bare, space)):
        return [*boxes]
    found: list[str | Box] = []
    at = 0
    for match in FENCED.finditer(text):
        boxes = _bbox_2d(reading, match[1], space)
        if boxes:
            found += [text[at : match.start()], *boxes]
            at = match.end()
    return [piece for piece in [*found, text[at:]] if piece]


def _bbox_2d(reading: Reading, text: str, space: Space) -> list[Box]:
    try:
        value = json.loads(text)
    except ValueError:
        return []
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(r, dict) and "bbox_2d" in r and set(r) <= {"bbox_2d", "label"} for r in rows):
        return []
    return [reading.box(str(r.get("label", "")), r["bbox_2d"], space, -1) for r in rows]


_SAME = {role: role for role in ("user", "assistant", "system", "tool")}
_WITH_MEDIA = ("image", "images", "video", "videos")


def _conversations(record: Mapping[str, Any]) -> bool:
    return "conversations" in record and bool(turns_of(record))


def _is_list(record: Mapping[str, Any], key: str) -> bool:
    return isinstance(record.get(key), list)


TALKS = (
    Format(
        name="swift",
        help="ms-swift: messages with <ref-object> and <bbox>, filled by objects",
        fits=lambda r: bool(turns_of(r)) and ("objects" in r or _holds(r, *(SWIFT.slots or ()))),
        read=_talk(SWIFT),
        write=talk_writer(SWIFT, ("messages", "role", "content"), _SAME, plural=True),
    ),
    Format(
        name="qwen-vl",
        help="Qwen-VL: <img>, <ref>, <box> and <quad> in the text",
        fits=lambda r: (
            _conversations(r)
            and _holds(r, "</img>", "</box>", "</ref>", "</quad>")
            and not any(k in r for k in _WITH_MEDIA)
        ),
        read=_talk(TAGS, newline=True),
        write=talk_writer(TAGS, ("conversations", "from", "value"), {"user": "user", "assistant": "assistant"}),
        container="json",
    ),
    Format(
        name="qwen-finetune",
        help="qwen-vl-finetune: image or video (one or a list), boxes as JSON in answers",
        fits=lambda r: (
            _conversations(r) and ("video" in r or "box_space" in r or _is_list(r, "image") or _holds(r, '"bbox_2d"'))
        ),
        read=_talk(TOKENS, newline=True, boxes_in_json=True),
        write=write_json_boxes,
        container="json",
    ),
    Format(
        name="sharegpt",
        help="ShareGPT, LLaMA-Factory: messages or conversations, media in lists",
        fits=lambda r: bool(turns_of(r)) and (not _conversations(r) or "images" in r or "videos" in r),
        read=_talk(TOKENS),
        write=talk_writer(TOKENS, ("messages", "role", "content"), _SAME, plural=True),
        container="json",
    ),
    Format(
        name="llava",
        help="LLaVA: conversations of from and value, one image",
        fits=_conversations,
        read=_talk(TOKENS, newline=True),
        write=talk_writer(TOKENS, ("conversations", "from", "value"), FROM, newline=True),
        container="json",
    ),
)
