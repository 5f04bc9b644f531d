"""Conversations on their way out: turns with marks in their texts, boxes as ms-swift's `objects` or as JSON."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from foveal.core.box import Box, Space
from foveal.data.marks import TOKENS, Marks, text_of
from foveal.data.sample import MEDIA, Sample
from foveal.data.writing import Writing

FROM = {"user": "human", "assistant": "gpt", "system": "system"}
"""Our roles as LLaVA and its like call them."""

FENCED = re.compile(r"```json\n(.*?)\n```", re.DOTALL)
"""A block of JSON in an answer."""


def talk_writer(
    marks: Marks, keys: tuple[str, str, str], roles: Mapping[str, str], *, newline: bool = False, plural: bool = False
) -> Callable[[Sample, Writing], dict[str, Any]]:
    """A writer of conversations. `keys`: of the list, of who speaks, of the text; `plural`: media always in lists."""
    listed, who, what = keys

    def write(sample: Sample, out: Writing) -> dict[str, Any]:
        media: dict[str, list[Any]] = {kind: [] for kind in MEDIA}
        objects = _Objects(sample, out)

        def medium(part: Mapping[str, Any]) -> str:
            if marks.named:
                return f"Picture {out.counted(part)}: {marks.named[0]}{out.medium(part)}{marks.named[1]}\n"
            media[part["type"]].append(out.medium(part))
            return (marks.media or {})[part["type"]]

        def name(label: str) -> str:
            if marks.slots:
                return objects.name(label)
            start, stop = marks.ref or ("", "")
            return f"{start}{label}{stop}"

        def box(found: Box) -> str:
            if marks.slots and not found.points:
                return objects.box(found)
            out.last_medium(found)
            pair = (marks.quad if found.points else marks.box) or ("", "")
            numbers = out.whole(found)
            return pair[0] + ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True)) + pair[1]

        turns = []
        for message in sample.messages:
            if message["role"] not in roles:
                raise out.refuse(f"a turn is said by {message['role']!r}")
            text = text_of(
                message["content"],
                marks,
                refuse=out.refuse,
                name=name if marks.ref else None,
                box=box,
                medium=medium,
                newline=newline,
            )
            turns.append({who: roles[message["role"]], what: text})
        record: dict[str, Any] = {"id": sample.id, listed: turns}
        for kind, found in media.items():
            if plural or len(found) > 1:
                record |= {f"{kind}s" if plural else kind: found} if found else {}
            elif found:
                record[kind] = found[0]
        return record | objects.record()

    return write


class _Objects:
    """ms-swift's `objects` on its way out: all boxes in pixels, or all in 0 to 1."""

    def __init__(self, sample: Sample, out: Writing) -> None:
        self.out, self.names, self.rows, self.owners = out, list[str](), list[list[float]](), list[int]()
        plain = [b for b in sample.boxes if not b.points]
        self.real = bool(plain) and all(b.space is Space.ORIGINAL_PX for b in plain)
        self.images = [i for i, m in enumerate(sample.media) if m["type"] == "image"]

    def name(self, label: str) -> str:
        self.names.append(label)
        return "<ref-object>"

    def box(self, box: Box) -> str:
        if box.image not in self.images:
            raise self.out.refuse("a box lies in a video")
        found = self.out.in_space(box, Space.ORIGINAL_PX if self.real else Space.RELATIVE_1000)
        self.rows.append([v if self.real else v / 1000 for v in found.corners])
        self.owners.append(self.images.index(box.image))
        return "<bbox>"

    def record(self) -> dict[str, Any]:
        if not self.names and not self.rows:
            return {}
        objects: dict[str, Any] = {"ref": self.names, "bbox": self.rows}
        if self.rows and not self.real:
            objects["bbox_type"] = "norm1"
        if any(self.owners):
            objects["image_id"] = self.owners
        return {"objects": objects}


def write_json_boxes(sample: Sample, out: Writing) -> dict[str, Any]:
    """qwen-vl-finetune: boxes of an answer as a JSON list, in the one space that the record states."""
    spaces = {b.space for b in sample.boxes}
    if len(spaces) > 1:
        raise out.refuse("its boxes are in several spaces")
    messages = []
    for message in sample.messages:
        content: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for part in [*message["content"], {"type": "end"}]:
            if part["type"] == "box":
                box = out.last_medium(part["box"])
                if box.points:
                    raise out.refuse("it has regions with four points")
                if message["role"] != "assistant":
                    raise out.refuse("it has boxes outside the answers")
                label = {"label": box.label} if box.label else {}
                rows.append({"bbox_2d": [out.short(v) for v in box.corners], **label})
                continue
            if rows:
                lines = ",\n".join(f"\t{json.dumps(row, ensure_ascii=False)}" for row in rows)
                content.append({"type": "text", "text": f"```json\n[\n{lines}\n]\n```"})
                rows = []
            if part["type"] == "text" and spaces and FENCED.search(part["text"]):
                raise out.refuse("its words hold a block of JSON beside boxes")
            if part["type"] != "end":
                content.append(part)
        messages.append({"role": message["role"], "content": content})
    plain = Sample(id=sample.id, messages=tuple(messages), set=sample.set)
    record = talk_writer(TOKENS, ("conversations", "from", "value"), FROM, newline=True)(plain, out)
    return record | ({"box_space": spaces.pop().value} if spaces else {})
