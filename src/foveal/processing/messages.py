"""The messages that users write, in every accepted form, as `Message` records.

Accepted are the OpenAI form (`image_url`, `video_url`), the Qwen form (`image`, `video` with their
settings), transformers' (`"type": "image"` with `url`, `path` or `base64`), and bare strings, PIL pictures and
arrays; see `parse_conversation`. Nothing is opened here, and
no key is ignored: what is not understood is an `InputError`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from foveal.core.box import Box
from foveal.core.errors import InputError, neighbours

ROLES = ("system", "user", "assistant", "tool")
LOW_DETAIL_PX = 512 * 512
"""What OpenAI's `"detail": "low"` allows an image: the area of its 512-pixel square."""


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """Words. They stay words: nothing in them is special.

    `tag` says that they are one of the format's own tags, such as `<tool_call>`; see `TextSegment`. It is for whoever
    writes the format, and never for other people's words.
    """

    text: str
    tag: bool = False


@dataclass(frozen=True, kw_only=True)
class BoxPart:
    """A region, written in the model's own box format. `box.image` counts the media of the conversation."""

    box: Box


@dataclass(frozen=True, kw_only=True)
class AskPart:
    """A question about regions, for chat formats that have marks for it: where `ref` is, or, without one, that the
    answer shall say where everything is."""

    ref: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImagePart:
    """A picture that is not opened yet: file, URL, data URL, bytes, PIL picture or array.

    `resized` (width, height in pixels) scales the picture first, as Qwen's `resized_width` and
    `resized_height` do; limits apply afterwards.
    """

    source: Any
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """A video that is not opened yet: a file, or its frames as a list or an array [F, H, W, C].

    `fps` or `nframes` say how densely a file is sampled, `start_s` and `end_s` (Qwen's `video_start`, `video_end`)
    which part of it; `sample_fps` how densely given frames were. Pixel limits hold for each frame,
    `total_pixels` for all together.
    """

    source: Any
    fps: float | None = None
    nframes: int | None = None
    max_frames: int | None = None
    sample_fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None


Part = TextPart | BoxPart | AskPart | ImagePart | VideoPart


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn: who speaks, and what."""

    role: str
    parts: tuple[Part, ...]


_PIXELS = ("min_pixels", "max_pixels")
_FRAMES = ("total_pixels", "fps", "nframes", "max_frames", "sample_fps", "video_start", "video_end")
_KEYS: dict[str, tuple[str, ...]] = {
    "text": ("tag",),
    "box": (),
    "ref": (),
    "grounding": (),
    "image": (*_PIXELS, "resized_width", "resized_height"),
    "image_url": (*_PIXELS, "resized_width", "resized_height"),
    "video": (*_PIXELS, *_FRAMES),
    "video_url": (*_PIXELS, *_FRAMES),
}
_OURS = {"video_start": "start_s", "video_end": "end_s"}
_WHOLE = {*_PIXELS, "total_pixels", "nframes", "max_frames", "resized_width", "resized_height"}


def parse_conversations(messages: Any) -> list[list[Message]]:
    """One conversation, or a list of them, as a list of conversations.

    A list whose elements are all lists or strings holds several conversations; a string is one that has a
    single user turn.
    """
    if isinstance(messages, Sequence) and not isinstance(messages, str | bytes):
        several = [isinstance(m, str | list | tuple) for m in messages]
        if several and all(several):
            return [parse_conversation(m) for m in messages]
        if any(several):
            i = several.index(not several[0])
            raise InputError(
                f"messages[{i}] is {_kind(messages[i])}, but messages[0] is {_kind(messages[0])}; pass "
                "one conversation (a list of messages) or a list of conversations."
            )
    return [parse_conversation(messages)]


def parse_conversation(messages: Any) -> list[Message]:
    """Reads a conversation: a string (one user turn), or a list of `{"role": ..., "content": ...}`.

    `content` is a string or a list of parts. A part is a string, a PIL picture, an array ([H, W] or
    [H, W, C] an image, [F, H, W, C] the frames of a video), a `Box`, or a mapping with one of `text`, `image`,
    `image_url`, `video`, `video_url`, `box`; its `"type"` may be left out. Families with marks for questions about
    regions also take `{"ref": "the red car"}` (where is it?) and `{"grounding": true}` (say where everything is).

    An image or video also takes `min_pixels` and `max_pixels`; an image `resized_width` with `resized_height`;
    a video `total_pixels` and `max_frames`, from a file also `fps` or `nframes`, `video_start` and `video_end`
    (seconds), as a list of frames `sample_fps`. `image_url` is a string or a mapping of `url` and `detail`
    ("auto" and "high": full limits; "low": at most `LOW_DETAIL_PX`).

    Raises:
        InputError: an unknown role, part or key (naming its neighbours), or a value of a wrong kind.
    """
    if isinstance(messages, str):
        return [Message(role="user", parts=(TextPart(text=messages),))]
    if isinstance(messages, Mapping | Message):
        messages = [messages]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        raise InputError(f"messages are {_kind(messages)}; expected a list of messages or a string.")
    if not messages:
        raise InputError("the conversation is empty; give it at least one message.")
    return [_message(m, f"messages[{i}]") for i, m in enumerate(messages)]


def _message(value: Any, where: str) -> Message:
    if isinstance(value, Message):
        _role(value.role, where)
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {_kind(value)}; expected a mapping with 'role' and 'content'.")
    for key in value:
        if key in ("tool_calls", "function_call", "tool_call_id", "name"):
            raise InputError(
                f"{where}: {key!r} has no place in this chat format; write what it says into the text of 'content'."
            )
        if key not in ("role", "content"):
            raise InputError(f"{where}: unknown key {key!r}; {neighbours(str(key), ('role', 'content'))}")
    for key in ("role", "content"):
        if key not in value:
            raise InputError(f"{where} has no {key!r}; add it.")
    content = value["content"]
    if isinstance(content, str | Mapping) or not isinstance(content, Sequence) or isinstance(content, bytes):
        content = [content]
    parts = tuple(parse_part(p, f"{where}.content[{i}]") for i, p in enumerate(content))
    return Message(role=_role(value["role"], where), parts=parts)


def _role(role: Any, where: str) -> str:
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where}: unknown role {role!r}; {neighbours(str(role), ROLES)}")
    return role


def parse_part(value: Any, where: str) -> Part:
    """Reads one part of a message's content; `where` names its place in errors. See `parse_conversation`."""
    if isinstance(value, TextPart | BoxPart | AskPart | ImagePart | VideoPart):
        return value
    if isinstance(value, str):
        return TextPart(text=value)
    if isinstance(value, Box):
        return BoxPart(box=value)
    if isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim in (2, 3)):
        return ImagePart(source=value)
    if isinstance(value, np.ndarray) and value.ndim == 4:
        return VideoPart(source=tuple(value))
    if not isinstance(value, Mapping):
        raise InputError(
            f"{where} is {_kind(value)}; expected a string, a picture, or a mapping such as "
            '{"type": "image", "image": ...}.'
        )
    kind = value.get("type")
    if kind is None:
        found = [k for k in _KEYS if k in value]
        if len(found) != 1:
            raise InputError(f"{where} has no 'type'; add one of {', '.join(_KEYS)}.")
        kind = found[0]
    if not isinstance(kind, str) or kind not in _KEYS:
        raise InputError(f"{where}: unknown part type {kind!r}; {neighbours(str(kind), _KEYS)}")
    value = _renamed(value, kind, where)
    known = (kind, *_KEYS[kind])
    for key in value:
        if key != "type" and key not in known:
            raise InputError(f"{where}: unknown key {key!r} in a part of type {kind!r}; {neighbours(str(key), known)}")
    if value.get(kind) is None:
        raise InputError(f"{where} has no {kind!r}; a part of type {kind!r} needs it.")
    source = value[kind]
    if kind == "text":
        if not isinstance(source, str):
            raise InputError(f"{where}: 'text' is {_kind(source)}; expected a string.")
        tag = value.get("tag", False)
        if not isinstance(tag, bool):
            raise InputError(f"{where}: 'tag' is {tag!r}; expected true or false.")
        return TextPart(text=source, tag=tag)
    if kind == "ref":
        if not isinstance(source, str) or not source.strip():
            raise InputError(f"{where}: 'ref' is {source!r}; expected words for what is to be found.")
        return AskPart(ref=source)
    if kind == "grounding":
        if source is not True:
            raise InputError(f"{where}: 'grounding' is {source!r}; expected true, or leave the part out.")
        return AskPart()
    if kind == "box":
        if not isinstance(source, Box):
            raise InputError(f"{where}: 'box' is {_kind(source)}; expected a foveal Box.")
        return BoxPart(box=source)
    settings = {k: v for k, v in value.items() if k in _KEYS[kind] and v is not None}
    numbers: dict[str, Any] = {_OURS.get(str(k), str(k)): checked_number(v, str(k), where) for k, v in settings.items()}
    if kind.endswith("_url"):
        source, detail = _url(source, kind, where)
        if detail == "low":
            numbers["max_pixels"] = min(numbers.get("max_pixels", LOW_DETAIL_PX), LOW_DETAIL_PX)
    low, high = numbers.get("min_pixels"), numbers.get("max_pixels")
    if low is not None and high is not None and low > high:
        raise InputError(f"{where}: min_pixels {low} is above max_pixels {high:.0f}; lower one or drop it.")
    return _image(source, numbers, where) if kind.startswith("image") else _video(source, numbers, where)


def _renamed(value: Mapping[str, Any], kind: str, where: str) -> Mapping[str, Any]:
    """transformers' form of a medium, `{"type": "image", "url" | "path" | "base64": ...}`, in Qwen's."""
    names = {"image": ("url", "path", "base64"), "video": ("url", "path")}.get(kind, ())
    found = [name for name in (kind, *names) if name in value]
    if not names or found in ([], [kind]):
        return value
    if len(found) > 1:
        raise InputError(f"{where} names its {kind} more than once ({', '.join(map(repr, found))}); keep one.")
    (name,) = found
    source = value[name]
    if name == "base64" and isinstance(source, str) and not source.startswith("data:"):
        source = f"data:application/octet-stream;base64,{source}"
    return {**{k: v for k, v in value.items() if k != name}, kind: source}


def _image(source: Any, numbers: dict[str, Any], where: str) -> ImagePart:
    width, height = numbers.pop("resized_width", None), numbers.pop("resized_height", None)
    if (width is None) != (height is None):
        raise InputError(f"{where}: 'resized_width' and 'resized_height' belong together; give both or none.")
    return ImagePart(source=source, resized=None if width is None else (width, height), **numbers)


def _video(source: Any, numbers: dict[str, Any], where: str) -> VideoPart:
    if "fps" in numbers and "nframes" in numbers:
        raise InputError(f"{where}: 'fps' and 'nframes' both say how many frames to take; give one.")
    if "start_s" in numbers and "end_s" in numbers and numbers["start_s"] >= numbers["end_s"]:
        raise InputError(
            f"{where}: video_start {numbers['start_s']} is not before video_end {numbers['end_s']}."
            " Give seconds from the start of the file."
        )
    frames = isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4)
    if frames:
        if len(source) == 0:
            raise InputError(f"{where}: the list of frames is empty; give at least one.")
        unfit = [k for k in numbers if k not in (*_PIXELS, "total_pixels", "max_frames", "sample_fps")]
        if unfit:
            raise InputError(
                f"{where}: {unfit[0]!r} samples a video file, but this video is a list of frames; "
                "drop it, and say with 'sample_fps' how dense the frames are."
            )
        source = tuple(source)
    elif "sample_fps" in numbers:
        raise InputError(f"{where}: 'sample_fps' describes a list of frames; for a file use 'fps'.")
    return VideoPart(source=source, **numbers)


def _url(value: Any, kind: str, where: str) -> tuple[Any, str]:
    """The address and the detail of an OpenAI part."""
    if not isinstance(value, Mapping):
        return value, "auto"
    known = ("url", "detail") if kind == "image_url" else ("url",)
    for key in value:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r} in {kind!r}; {neighbours(str(key), known)}")
    if value.get("url") is None:
        raise InputError(f"{where}: {kind!r} has no 'url'; add it.")
    detail = value.get("detail") or "auto"
    if detail not in ("auto", "high", "low"):
        raise InputError(f"{where}: detail {detail!r} is unknown; use 'auto' or 'high' (full limits) or 'low'.")
    return value["url"], detail


def checked_number(value: Any, key: str, where: str) -> int | float:
    """A checked setting. `video_start` may be 0; all others are above 0."""
    whole = key in _WHOLE
    plain = isinstance(value, int | np.integer) or (not whole and isinstance(value, float | np.floating))
    if isinstance(value, bool) or not plain or not 0 <= value <= 1e15:
        raise InputError(f"{where}: {key!r} is {value!r}; expected a {'whole ' if whole else ''}number above 0.")
    if value == 0 and key != "video_start":
        raise InputError(f"{where}: {key!r} is 0; expected a number above 0.")
    return int(value) if whole else float(value)


def _kind(value: Any) -> str:
    """A value's type, for messages."""
    return "None" if value is None else f"of type {type(value).__name__}"
