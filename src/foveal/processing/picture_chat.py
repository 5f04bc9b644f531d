"""Qwen-VL's chat: ChatML in which every picture is numbered, and a window over the history.

<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
Picture 1: <img><imgpad>...</img>
What is this?<|im_end|>
<|im_start|>assistant
A <ref>dog</ref><box>(216,426),(578,895)</box>.<|im_end|>
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, InputError, neighbours
from foveal.core.packed import Medium
from foveal.processing.chat import BoxWriter
from foveal.processing.messages import BoxPart, ImagePart, Message, TextPart
from foveal.processing.processor import Processing
from foveal.processing.segments import MediumSegment, Segment, SpecialSegment, TextSegment
from foveal.processing.tokens import Tokenizer

log = logging.getLogger(__name__)

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(205)),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"),
)
"""Special tokens in the order of their ids, which follow those of `qwen.tiktoken`."""

ROLES = ("system", "user", "assistant")
START, END, PAD = "<|im_start|>", "<|im_end|>", "<imgpad>"

WINDOW = 6144
"""Tokens of system text and earlier turns that are shown, unless generation_config.json says otherwise."""


@dataclass(frozen=True, kw_only=True)
class PictureChat:
    """The chat format of Qwen-VL-Chat, and the absence of one in Qwen-VL.

    Attributes:
        default_system: what the system says if the conversation does not begin with a system message.
        layout: "chatml", or "raw": what the user says, as it is, and nothing around it (base model).
        labels: what training learns: "answers", the assistant's words with the token that ends its turn; or
            "published", as the release's fine-tuning: all the assistant says, and in every turn of anybody
            the tokens around it and the line break after it.
    """

    default_system: str = "You are a helpful assistant."
    layout: Literal["chatml", "raw"] = "chatml"
    labels: Literal["answers", "published"] = "answers"

    @property
    def specials(self) -> tuple[str, ...]:
        """Special tokens that it needs in the vocabulary."""
        return (START, END, "<img>", PAD, "</img>", "<|endoftext|>")

    @property
    def pads(self) -> tuple[str, None]:
        return PAD, None

    @property
    def end(self) -> str:
        """The token that ends a turn."""
        return END if self.layout == "chatml" else "<|endoftext|>"

    @property
    def config_ids(self) -> Mapping[str, str]:
        """None at the top of config.json; the family checks the id that stands in its section `visual`."""
        return {}

    def template(self) -> None:
        """Releases have no template."""
        return

    def render(self, messages: Sequence[Message], *, boxes: BoxWriter, generate: bool) -> list[Segment]:
        """Segments of a conversation; see `FamilyChat`.

        Raises:
            InputError: a role that the format does not have.
        """
        for message in messages:
            if message.role not in ROLES:
                raise InputError(f"role {message.role!r}: this chat format has {', '.join(ROLES)} only.")
        if self.layout == "raw":
            return self._raw(messages, boxes, generate)
        published = self.labels == "published"
        segments: list[Segment] = []
        if messages[0].role != "system":
            default = Message(role="system", parts=(TextPart(text=self.default_system),))
            segments += self._turn(default, -1, boxes, 0)
        pictures = 0
        for turn, message in enumerate(messages):
            segments += self._turn(message, turn, boxes, pictures)
            pictures += sum(isinstance(p, ImagePart) for p in message.parts)
            unanswered = message.role == "user" and [m.role for m in messages[turn + 1 : turn + 2]] == ["user"]
            if generate and unanswered:
                segments.append(TextSegment(text="\n", alone=True, role="user", turn=turn))
        if generate:
            last: dict[str, Any] = {"role": "assistant", "turn": len(messages)}
            segments.append(SpecialSegment(name=START, learned=published, **last))
            segments.append(TextSegment(text="assistant\n", alone=True, **last))
        return segments

    def _turn(self, message: Message, turn: int, boxes: BoxWriter, pictures: int) -> Iterator[Segment]:
        """One turn; role and line break are split into tokens apart from the words, as published."""
        answer, published = message.role == "assistant", self.labels == "published"
        own: dict[str, Any] = {"role": message.role, "turn": turn}
        yield SpecialSegment(name=START, learned=published, **own)
        yield TextSegment(text=f"{message.role}\n", alone=True, **own)
        for segment in self._content(message, boxes, pictures):
            shown = isinstance(segment, MediumSegment) or segment in (IMAGE_START, IMAGE_END)
            yield replace(segment, learned=answer and not shown, **own)
        yield SpecialSegment(name=END, learned=answer or published, **own)
        yield TextSegment(text="\n", alone=True, learned=published, **own)

    def _content(self, message: Message, boxes: BoxWriter, pictures: int) -> Iterator[Segment]:
        for kind, group in groupby(message.parts, key=type):
            if kind is BoxPart:
                yield from boxes([p.box for p in group if isinstance(p, BoxPart)])
                continue
            for part in group:
                if isinstance(part, TextPart):
                    yield TextSegment(text=part.text)
                elif isinstance(part, ImagePart):
                    yield TextSegment(text=f"Picture {pictures + 1}: ")
                    yield IMAGE_START
                    yield MediumSegment(medium=pictures, pad=PAD)
                    yield IMAGE_END
                    yield TextSegment(text="\n")
                    pictures += 1
                else:
                    raise InputError("a video was given, but this family sees images only; pass single frames.")

    def _raw(self, messages: Sequence[Message], boxes: BoxWriter, generate: bool) -> list[Segment]:
        """A prompt, and for training what follows it."""
        roles = [m.role for m in messages]
        if roles != ["user"] and (generate or roles != ["user", "assistant"]):
            raise InputError(
                f"a base model has no turns, but the conversation has {', '.join(roles)}; pass one user message, "
                "or give the whole text as prompt=."
            )
        pictures, segments = 0, []
        for turn, message in enumerate(messages):
            own: dict[str, Any] = {"role": message.role, "turn": turn}
            answer = message.role == "assistant"
            segments += [replace(s, learned=answer, **own) for s in self._content(message, boxes, pictures)]
            pictures += sum(isinstance(p, ImagePart) for p in message.parts)
            if answer:
                segments.append(SpecialSegment(name=self.end, learned=True, **own))
        return segments


IMAGE_START, IMAGE_END = SpecialSegment(name="<img>"), SpecialSegment(name="</img>")


def settle(processing: Processing, folder: Path) -> Processing:
    """The format and the window that generation_config.json states, and the words that end an answer."""
    path, chat = folder / "generation_config.json", processing.chat
    settings = read_json(path) if path.is_file() else {}
    layout, window = settings.get("chat_format", "chatml"), settings.get("max_window_size", WINDOW)
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ConfigError(f"{path}: max_window_size is {window!r}; expected a whole number of tokens above 0.")
    if layout not in ("chatml", "raw"):
        raise ConfigError(f"{path}: chat_format is {layout!r}; {neighbours(str(layout), ('chatml', 'raw'))}")
    chat = replace(chat, layout=layout) if isinstance(chat, PictureChat) else chat
    if layout == "raw":
        return replace(processing, chat=chat, shorten=None, stops=("<|endoftext|>",), stop_texts=("Human:",))
    return replace(processing, chat=chat, shorten=partial(shorten, window=window))


def named_pictures(segments: list[Segment]) -> list[Segment]:
    """A raw prompt in which `<img>name</img>`, as published prompts have it, is the place of one picture.

    The name says nothing: pictures come from `media=`, in order.
    """
    made = list(segments)
    for number in range(len(segments) - 2):
        start, name, end = segments[number : number + 3]
        if isinstance(name, TextSegment) and _named(start, "<img>") and _named(end, "</img>"):
            made[number + 1] = SpecialSegment(name=PAD)
    return made


def _named(segment: Segment, name: str) -> bool:
    return isinstance(segment, SpecialSegment) and segment.name == name


def check_pictures(segments: list[Segment], media: Sequence[Medium]) -> list[Segment]:  # noqa: ARG001
    """Every `<img>` of a prompt has a picture behind it, and every picture its tags: no text there names a file."""
    edge = Segment()
    for before, segment, after in zip([edge, *segments], segments, [*segments[1:], edge], strict=False):
        inside = isinstance(segment, MediumSegment)
        whole = inside and _named(before, "<img>") and _named(after, "</img>")
        if (inside and not whole) or (_named(segment, "<img>") and not isinstance(after, MediumSegment)):
            raise InputError(
                "a picture's place in a prompt is <img><imgpad></img>, with the picture in media=; found <img> or "
                "<imgpad> without the others."
            )
    return segments


def shorten(
    segments: list[Segment], media: Sequence[Medium], tokenizer: Tokenizer, *, window: int = WINDOW
) -> list[Segment]:
    """Leaves out the oldest turns of a conversation whose history is longer than the window (`make_context`).

    A question and its answer are left out together. Beginning with the newest, they are kept while system text and
    kept turns stay below `window` tokens; the question that is to be answered is not counted.
    """
    turns = [list(group) for _, group in groupby(segments, key=lambda s: s.turn)]
    sizes = [len(tokenizer.encode_segments(t, [m.tokens for m in media]).ids) for t in turns]
    roles = [t[0].role for t in turns]
    first = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    users = [i for i, role in enumerate(roles) if role == "user"]
    end = users[-1] if users else len(turns)
    used = sum(sizes[:first]) - 1  # its line break belongs to what follows
    keep = end
    for start in [i for i in reversed(users[:-1]) if i >= first] + [first] * (first < end and roles[first] != "user"):
        size = sum(sizes[start:keep])
        if used + size >= window:
            break
        used, keep = used + size, start
    if keep > first:
        log.warning(
            "%d earlier messages are not shown to the model: the history has more than %d tokens (max_window_size).",
            keep - first, window,
        )  # fmt: skip
    return [s for turn in turns[:first] + turns[keep:] for s in turn]
