"""`Sample`: one conversation of a data set, in the form that `Processor.process` takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from foveal.core.box import Box
from foveal.core.errors import InputError
from foveal.processing.messages import parse_conversation

MEDIA = ("image", "video")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation. Its media stay paths or bytes until they are processed.

    Attributes:
        id: unique in its set.
        messages: `{"role": ..., "content": [part, ...]}`; a part is a mapping with "type" and one of text, image,
            video, box (a `Box` that says its space), ref or grounding, and a medium's settings. `normal` makes them so.
        set: the name of the data set.
        where: file and place in it, for errors.
        extra: fields of the record that are no part of the conversation; conversions carry them along.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    set: str
    where: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """How errors call it."""
        place = f" ({self.where})" if self.where else ""
        return f"sample {self.id!r} of set {self.set!r}{place}"

    @property
    def parts(self) -> list[dict[str, Any]]:
        """All parts of all messages in order."""
        return [part for message in self.messages for part in message["content"]]

    @property
    def media(self) -> list[dict[str, Any]]:
        """The images and videos in order; `Box.image` counts them."""
        return [part for part in self.parts if part["type"] in MEDIA]

    @property
    def boxes(self) -> list[Box]:
        return [part["box"] for part in self.parts if part["type"] == "box"]

    @property
    def text(self) -> str:
        """All words, labels of boxes included, for comparing and counting."""
        return "\n".join(
            "".join(_words(part) for part in message["content"] if part["type"] not in MEDIA)
            for message in self.messages
        )


def normal(messages: Sequence[Mapping[str, Any]], where: str = "") -> tuple[dict[str, Any], ...]:
    """Messages as a `Sample` holds them: every content a list of parts with types, neighbouring texts joined, empty
    texts dropped.

    Raises `InputError` where `Processor.process` would not take them.
    """
    try:
        parse_conversation(list(messages))
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None
    return tuple({"role": m["role"], "content": _joined(m["content"])} for m in messages)


def _joined(content: Any) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    whole = isinstance(content, str | Mapping) or not isinstance(content, Sequence)
    for value in [content] if whole else content:
        part = _typed(value)
        if part["type"] == "text":
            if not part["text"]:
                continue
            if parts and parts[-1]["type"] == "text":
                parts[-1] = {"type": "text", "text": parts[-1]["text"] + part["text"]}
                continue
        parts.append(part)
    return parts


def _typed(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": "text", "text": value}
    if isinstance(value, Box):
        return {"type": "box", "box": value}
    if isinstance(value, Mapping):
        kinds = ("text", "box", "ref", "grounding", "image", "image_url", "video", "video_url")
        kind = value.get("type") or next(k for k in kinds if k in value)
        return {"type": kind, **{k: v for k, v in value.items() if k != "type"}}
    return {"type": "image", "image": value}


def worded(sample: Sample) -> Sample:
    """The same sample for chat formats without marks for questions about regions: a `ref` alone in its turn asks
    "Where is ...?", one among words is words, and `grounding` asks to say where everything is."""
    messages = []
    for message in sample.messages:
        alone = not any(p["type"] == "text" for p in message["content"])
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "ref":
                text = f"Where is {part['ref']}?" if alone and message["role"] == "user" else part["ref"]
                parts.append({"type": "text", "text": text})
            elif part["type"] == "grounding":
                parts.append({"type": "text", "text": "Say where everything is. "})
            else:
                parts.append(part)
        messages.append({"role": message["role"], "content": parts})
    return replace(sample, messages=normal(messages, str(sample)))


def messages_for(sample: Sample, chat: Any) -> list[dict[str, Any]]:
    """The sample's messages as a processor with this chat format takes them: `worded` unless it has the marks."""
    marked = any(part["type"] in ("ref", "grounding") for part in sample.parts)
    if marked and not getattr(chat, "asks", False):
        sample = worded(sample)
    return list(sample.messages)


def _words(part: Mapping[str, Any]) -> str:
    if part["type"] == "box":
        return part["box"].label
    return str(part.get("text") or part.get("ref") or "")
