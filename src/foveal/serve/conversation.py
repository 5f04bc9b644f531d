"""From a request to what the processor takes: messages in one form, media as sources, settings, the answer's form."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.core.errors import BudgetError, InputError
from foveal.processing.messages import LOW_DETAIL_PX
from foveal.processing.processor import Processor
from foveal.serve import tools
from foveal.serve.decoder import BLOB
from foveal.serve.media import Media
from foveal.serve.options import ServeOptions
from foveal.serve.schema import (
    AssistantMessage,
    ChatRequest,
    ImagePart,
    ImageUrl,
    ImageUrlPart,
    SystemMessage,
    TextPart,
    TokenizeRequest,
    ToolMessage,
    UserMessage,
    VideoPart,
    VideoUrl,
    VideoUrlPart,
)

_KNOBS = ("min_pixels", "max_pixels", "fps", "nframes", "max_frames")
_VIDEO = ("total_pixels", "video_start", "video_end", "sample_fps")
FETCHES = 4  # at once, for one request


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages in Qwen's form; `urls` are the sources of their media, in order, and `asked` their settings."""

    messages: list[dict[str, Any]]
    knobs: dict[str, Any]
    asked: list[dict[str, Any]]
    places: list[tuple[dict[str, Any], str, int | None]]

    async def fetched(self, media: Media) -> list[bytes]:
        """Fills in the sources: data URLs stay, everything else is read and becomes a reference to its bytes."""
        gate = asyncio.Semaphore(FETCHES)

        async def read(url: str) -> bytes | str:
            if url[:5].lower() == "data:":
                return url
            async with gate:
                return await asyncio.to_thread(media.read, url)

        urls = [part[kind] if at is None else part[kind][at] for part, kind, at in self.places]
        found = await asyncio.gather(*(read(url) for url in urls))
        blobs: list[bytes] = []
        for (part, kind, at), item in zip(self.places, found, strict=True):
            source: Any = item
            if isinstance(item, bytes):
                source = {BLOB: len(blobs)}
                blobs.append(item)
            if at is None:
                part[kind] = source
            else:
                part[kind][at] = source
        return blobs


def conversation(asked: ChatRequest | TokenizeRequest, options: ServeOptions, processor: Processor) -> Conversation:
    """The conversation of a request, with every limit that can be checked without opening anything.

    Raises:
        InputError: media, settings or messages that do not go together or pass a limit.
    """
    own_px = most_pixels(processor)
    sized = own_px is not None
    knobs = _knobs(asked, options, own_px)
    tags = frozenset(tools.TAGS) & frozenset(processor.tokenizer.special_names)
    messages: list[dict[str, Any]] = []
    results: list[str] = []
    known: set[str] = set()
    for number, message in enumerate(asked.messages or ()):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in known:
                raise InputError(
                    f"messages[{number}] answers the call {message.tool_call_id!r}, which no earlier message makes."
                )
            results.append(_words(message.content))
            continue
        if results:
            messages.append({"role": "user", "content": tools.parts(tools.answered(results), tags)})
            results = []
        if isinstance(message, SystemMessage):
            messages.append(_turn("system", _words(message.content)))
        elif isinstance(message, AssistantMessage):
            calls = message.tool_calls or ()
            known |= {call.id for call in calls}
            said = tools.said(_words(message.content or ""), [(c.function.name, c.function.arguments) for c in calls])
            messages.append({"role": "assistant", "content": tools.parts(said, tags)})
        elif isinstance(message, UserMessage):
            content = message.content
            if isinstance(content, str):
                messages.append(_turn("user", content))
            else:
                messages.append({"role": "user", "content": [_part(p, options, sized) for p in content]})
    if results:
        messages.append({"role": "user", "content": tools.parts(tools.answered(results), tags)})
    if isinstance(asked, ChatRequest) and asked.tools and asked.tool_choice != "none":
        _show_tools(messages, functions_of(asked), getattr(processor.chat, "default_system", None) or "", tags)
    places = list(_places(messages))
    _check_count(places, options)
    parts = list({id(part): part for part, _, _ in places}.values())
    told = {"max_pixels": own_px, **knobs} if sized else knobs
    return Conversation(
        messages=messages,
        knobs=knobs,
        asked=[{**told, **{k: v for k, v in part.items() if k in (*_KNOBS, *_VIDEO)}} for part in parts],
        places=places,
    )


def most_pixels(processor: Processor) -> int | None:
    """The largest area in pixels to which the model itself resizes a picture; None where its size is fixed."""
    found = processor.processing.vision.pixel_range(images=True, videos=False)
    return None if found is None else found[1]


def tool_names(asked: ChatRequest) -> frozenset[str]:
    """The functions that the answer may call."""
    return frozenset() if asked.tool_choice == "none" else frozenset(t.function.name for t in asked.tools or ())


def functions_of(asked: ChatRequest) -> list[dict[str, Any]]:
    """The functions of a request as a model is shown them."""
    return [t.function.model_dump(exclude_none=True, exclude={"strict"}) for t in asked.tools or ()]


def _show_tools(
    messages: list[dict[str, Any]], functions: list[dict[str, Any]], default: str, tags: frozenset[str]
) -> None:
    own = default
    if messages[0]["role"] == "system":
        own = messages.pop(0)["content"][0]["text"]
    messages.insert(0, {"role": "system", "content": tools.parts(tools.shown(functions, own), tags)})


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _words(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _part(part: Any, options: ServeOptions, sized: bool) -> dict[str, Any]:
    """One part in Qwen's form."""
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    settings = {k: v for k in (*_KNOBS, *_VIDEO) if (v := getattr(part, k, None)) is not None}
    if isinstance(part, ImageUrlPart):
        link = part.image_url
        if isinstance(link, ImageUrl):
            if link.detail == "low" and sized:
                settings["max_pixels"] = min(settings.get("max_pixels", LOW_DETAIL_PX), LOW_DETAIL_PX)
            link = link.url
        made: dict[str, Any] = {"type": "image", "image": link}
    elif isinstance(part, ImagePart):
        made = {"type": "image", "image": part.image}
    elif isinstance(part, VideoUrlPart):
        made = {
            "type": "video",
            "video": part.video_url.url if isinstance(part.video_url, VideoUrl) else part.video_url,
        }
    elif isinstance(part, VideoPart):
        made = {"type": "video", "video": part.video if isinstance(part.video, str) else list(part.video)}
    else:
        raise InputError(f"a part of type {type(part).__name__} has no place in a message.")
    _check_pixels(settings, options)
    return {**made, **settings}


def _knobs(asked: ChatRequest | TokenizeRequest, options: ServeOptions, own_px: int | None) -> dict[str, Any]:
    """Settings for all media of a request."""
    found: dict[str, Any] = {}
    for name in _KNOBS:
        values = [getattr(asked, name), getattr(getattr(asked, "mm_processor_kwargs", None), name, None)]
        given = [v for v in values if v is not None]
        if len(given) > 1:
            raise InputError(f"{name} is given twice, also in mm_processor_kwargs; give it once.")
        if given:
            found[name] = given[0]
    _check_pixels(found, options)
    if options.max_pixels is not None and own_px is not None and own_px > options.max_pixels:
        found.setdefault("max_pixels", options.max_pixels)
    return found


def _check_pixels(settings: Mapping[str, Any], options: ServeOptions) -> None:
    for name in ("min_pixels", "max_pixels"):
        value = settings.get(name)
        if value is not None and options.max_pixels is not None and value > options.max_pixels:
            raise InputError(f"{name} is {value}; this server allows {options.max_pixels}.")


def _places(messages: Iterable[Mapping[str, Any]]) -> Iterable[tuple[dict[str, Any], str, int | None]]:
    """Where the sources of media stand: part, key, and for a list of frames its index."""
    for message in messages:
        for part in message["content"]:
            kind = part["type"]
            if kind == "text":
                continue
            if isinstance(part[kind], list):
                yield from ((part, kind, at) for at in range(len(part[kind])))
            else:
                yield part, kind, None


def _check_count(places: Sequence[tuple[dict[str, Any], str, int | None]], options: ServeOptions) -> None:
    for kind in ("image", "video"):
        count = len({id(part) for part, k, _ in places if k == kind})
        most = options.limit_mm_per_prompt.get(kind, options.budget.media)
        if count > most:
            raise BudgetError(f"{count} {kind}s in one request; this server takes {most}.")
    frames = sum(1 for *_, at in places if at is not None)
    if frames > options.budget.frames:
        raise BudgetError(f"{frames} frames in one request; this server takes {options.budget.frames}.")
