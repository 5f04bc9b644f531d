"""ChatML: a conversation as segments, as Qwen2-VL's published chat template writes it.

<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>
<|im_start|>assistant
A bicycle.<|im_end|>
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol, runtime_checkable

from foveal.core.box import Box
from foveal.processing.messages import BoxPart, ImagePart, Message, TextPart, VideoPart
from foveal.processing.segments import MediumSegment, Segment, SpecialSegment, TextSegment

BoxWriter = Callable[[Sequence[Box]], list[Segment]]
"""Writes neighbouring boxes of a message (see `foveal.processing.grounding.BoxStyle.render`)."""


@runtime_checkable
class ChatFormat(Protocol):
    """Turns a conversation into segments."""

    def render(self, messages: Sequence[Message], *, boxes: BoxWriter, generate: bool) -> list[Segment]:
        """Segments of `messages`; with `generate` they end where the assistant is to go on."""
        ...

    def template(self) -> str | None:
        """The same format as a Jinja chat template, for other libraries; None where its releases have none."""
        ...


@runtime_checkable
class FamilyChat(ChatFormat, Protocol):
    """The chat format that a family declares."""

    @property
    def specials(self) -> tuple[str, ...]:
        """Special tokens that it needs in the vocabulary."""
        ...

    @property
    def pads(self) -> tuple[str, str | None]:
        """The tokens that stand for one visual token of an image and of a video (None: it has no videos)."""
        ...

    @property
    def end(self) -> str:
        """The token that ends a turn."""
        ...

    @property
    def config_ids(self) -> Mapping[str, str]:
        """Keys of config.json that state ids of vision tokens -> the tokens."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChatML:
    """The chat format of the Qwen line.

    Attributes:
        default_system: what the system says if the conversation does not begin with a system message.
            None: nothing.
        start, end: tokens around a turn.
        image, video: tokens before, in place of, and after a medium.
        number_media: writes `Picture 1: ` or `Video 1: ` before each (the published `add_vision_id`).
    """

    default_system: str | None = "You are a helpful assistant."
    start: str = "<|im_start|>"
    end: str = "<|im_end|>"
    image: tuple[str, str, str] = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    video: tuple[str, str, str] = ("<|vision_start|>", "<|video_pad|>", "<|vision_end|>")
    number_media: bool = False

    @property
    def specials(self) -> tuple[str, ...]:
        """Special tokens that it needs in the vocabulary."""
        return tuple(dict.fromkeys((self.start, self.end, *self.image, *self.video)))

    @property
    def pads(self) -> tuple[str, str]:
        """The tokens that stand for one visual token of an image and of a video."""
        return self.image[1], self.video[1]

    @property
    def config_ids(self) -> Mapping[str, str]:
        """Keys of config.json that state ids of vision tokens -> the tokens."""
        return {
            "image_token_id": self.image[1],
            "video_token_id": self.video[1],
            "vision_start_token_id": self.image[0],
            "vision_end_token_id": self.image[2],
        }

    @property
    def _frames(self) -> tuple[SpecialSegment, ...]:
        """The tokens around media, which are shown and never said."""
        return tuple(SpecialSegment(name=n) for n in (self.image[0], self.image[2], self.video[0], self.video[2]))

    def render(self, messages: Sequence[Message], *, boxes: BoxWriter, generate: bool) -> list[Segment]:
        """Segments of a conversation. What the assistant said, with the token that ends its turn, is learned."""
        segments: list[Segment] = []
        if self.default_system is not None and messages[0].role != "system":
            default = Message(role="system", parts=(TextPart(text=self.default_system),))
            segments += self._turn(default, -1, [self._plain(self.default_system)])
        counter = _Counter()
        for turn, message in enumerate(messages):
            segments += self._turn(message, turn, self._content(message, boxes, counter))
        if generate:
            header = [SpecialSegment(name=self.start), self._plain("assistant\n")]
            segments += (replace(s, role="assistant", turn=len(messages)) for s in header)
        return segments

    def template(self) -> str:
        """This format as a Jinja chat template, for other libraries; `render` does not use it."""

        def quote(text: str) -> str:
            return json.dumps(text, ensure_ascii=False)

        def medium(kind: str, word: str, tokens: tuple[str, str, str]) -> str:
            test = f"part['type'] in ('{kind}', '{kind}_url') or '{kind}' in part or '{kind}_url' in part"
            return (
                f"{test} %}}{{% set seen.{kind} = seen.{kind} + 1 %}}"
                f"{{% if add_vision_id | default({str(self.number_media).lower()}) %}}"
                f"{{{{ '{word} ' ~ seen.{kind} ~ ': ' }}}}{{% endif %}}{{{{ {quote(''.join(tokens))} }}}}"
            )

        system = ""
        if self.default_system is not None:
            opening = quote(f"{self.start}system\n{self.default_system}{self.end}\n")
            system = f"{{% if messages[0]['role'] != 'system' %}}{{{{ {opening} }}}}{{% endif %}}"
        end = f"{{{{ {quote(self.end + chr(10))} }}}}"
        return (
            "{% set seen = namespace(image=0, video=0) %}"
            f"{system}{{% for message in messages %}}"
            f"{{{{ {quote(self.start)} ~ message['role'] ~ {quote(chr(10))} }}}}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}"
            f"{{% if {medium('image', 'Picture', self.image)}{{% elif {medium('video', 'Video', self.video)}"
            "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
            f"{end}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {quote(self.start + 'assistant' + chr(10))} }}}}{{% endif %}}"
        )

    def _turn(self, message: Message, turn: int, content: Iterable[Segment]) -> Iterator[Segment]:
        learned = message.role == "assistant"
        yield SpecialSegment(name=self.start, role=message.role, turn=turn)
        yield TextSegment(text=f"{message.role}\n", role=message.role, turn=turn)
        for segment in (*content, SpecialSegment(name=self.end)):
            shown = isinstance(segment, MediumSegment) or segment in self._frames
            yield replace(segment, role=message.role, turn=turn, learned=learned and not shown)
        yield TextSegment(text="\n", role=message.role, turn=turn)

    def _content(self, message: Message, boxes: BoxWriter, counter: "_Counter") -> Iterator[Segment]:
        for kind, group in groupby(message.parts, key=type):
            if kind is BoxPart:
                yield from boxes([p.box for p in group if isinstance(p, BoxPart)])
                continue
            for part in group:
                if isinstance(part, TextPart):
                    yield TextSegment(text=part.text, tag=part.tag)
                elif isinstance(part, ImagePart | VideoPart):
                    yield from self._medium(part, counter)

    def _medium(self, part: ImagePart | VideoPart, counter: "_Counter") -> Iterator[Segment]:
        still = isinstance(part, ImagePart)
        before, pad, after = self.image if still else self.video
        number, medium = counter.next(still)
        if self.number_media:
            yield self._plain(f"{'Picture' if still else 'Video'} {number}: ")
        yield SpecialSegment(name=before)
        yield MediumSegment(medium=medium, pad=pad)
        yield SpecialSegment(name=after)

    @staticmethod
    def _plain(text: str) -> TextSegment:
        return TextSegment(text=text)


class _Counter:
    """Numbers media: within their kind from 1, and within the conversation from 0."""

    def __init__(self) -> None:
        self.kinds = {True: 0, False: 0}

    def next(self, still: bool) -> tuple[int, int]:
        medium = sum(self.kinds.values())
        self.kinds[still] += 1
        return self.kinds[still], medium
