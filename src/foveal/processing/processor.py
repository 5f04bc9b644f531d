"""`Processor`: conversations with their media in, `Packed` out; and answers taken apart into words and boxes.

messages ──▶ parts ──▶ media opened, resized, cut into patches
               └─────▶ segments ──▶ token ids ──▶ runs, spans, positions
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveal.core.box import Box
from foveal.core.errors import BudgetError, InputError
from foveal.core.media import MediaBudget
from foveal.core.packed import LEFT_OUT, Medium, Packed, join
from foveal.processing.chat import ChatFormat, FamilyChat
from foveal.processing.grounding import AnswerReader, BoxStyle, Grounded, parse
from foveal.processing.intake import Knobs, Opened, VideoShape, Vision
from foveal.processing.messages import AskPart, ImagePart, Message, Part, TextPart, VideoPart, parse_conversations
from foveal.processing.packing import pack
from foveal.processing.positions import Positions
from foveal.processing.prompt import place_media
from foveal.processing.published import read_folder, read_tokenizer, write_files
from foveal.processing.resize import Resize
from foveal.processing.segments import MediumSegment, Segment
from foveal.processing.tokens import Tokenizer

PROCESS_OPTIONS = ("generate", "min_pixels", "max_pixels", "fps", "nframes", "max_frames", "resize")
"""Options of `Processor.process` that a question may carry beside those of sampling."""

_VISION_PADS = ("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


@dataclass(frozen=True, kw_only=True)
class Processing:
    """What a family declares about its input. A checkpoint's own files replace the settings of `vision`."""

    vision: Vision
    chat: FamilyChat
    boxes: BoxStyle
    positions: Positions
    tokenizer: Callable[[Path], Tokenizer] = read_tokenizer
    arrange: Callable[[list[Segment], Sequence[Medium]], list[Segment]] | None = None
    """Rewrites a rendered conversation once its media are known, where their place holds more than pads."""
    places: Callable[[list[Segment]], list[Segment]] | None = None
    """Rewrites a raw prompt before its media take the places of pads, where prompts have another form of place."""
    shorten: Callable[[list[Segment], Sequence[Medium], Tokenizer], list[Segment]] | None = None
    """Leaves out the beginning of a conversation that is to be answered, where a family has a window over it."""
    settle: "Callable[[Processing, Path], Processing] | None" = None
    """The same with what other files of a published folder say, such as generation_config.json."""
    stops: tuple[str, ...] = ()
    """Special tokens that end an answer beside those that generation_config.json states."""
    stop_texts: tuple[str, ...] = ()
    """Words before which an answer ends."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a conversation costs: all its tokens, those of text, and the record of each medium."""

    tokens: int
    text_tokens: int
    media: tuple[Medium, ...]


class Processor:
    """Input and output of one checkpoint.

    Args:
        tokenizer: its vocabulary.
        processing: its settings.
        context_tokens: the longest sequence it takes; None for no bound.
        chat: how conversations are rendered, if not by `processing.chat`.
        files: the published files that these settings come from, which `save` writes back.

    Raises:
        ConfigError: the vocabulary lacks a special token that the chat format or box style needs.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        processing: Processing,
        context_tokens: int | None,
        chat: ChatFormat | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.tokenizer, self.processing, self.context_tokens = tokenizer, processing, context_tokens
        self.chat: ChatFormat = chat or processing.chat
        self._files = files
        for name in (*processing.chat.specials, *processing.boxes.specials):
            tokenizer.special(name)

    @classmethod
    def from_folder(cls, folder: Path, processing: Processing, *, context_tokens: int | None) -> "Processor":
        """Reads the tokenizer, the processor settings and the chat template of a published folder.

        Raises:
            ConfigError: a file is missing, damaged, or asks for what is not supported.
        """
        from foveal.processing.template import choose_format  # with Jinja, which planning does without

        found = read_folder(folder, processing.tokenizer)
        if processing.settle is not None:
            processing = processing.settle(processing, folder)
        split, variables = found.tokenizer.split, found.variables
        return cls(
            tokenizer=found.tokenizer,
            processing=replace(processing, vision=processing.vision.read(folder)),
            context_tokens=context_tokens,
            chat=choose_format(found.template, processing.chat, split=split, variables=variables),
            files=found.files,
        )

    def changed(self, *, chat: ChatFormat | None = None, vision: Vision | None = None) -> "Processor":
        """The same with another chat format or other settings of media; `files` stay those of the checkpoint."""
        other = copy.copy(self)
        other.chat = chat or self.chat
        other.processing = replace(self.processing, vision=vision or self.processing.vision)
        return other

    @property
    def end_of_turn(self) -> int:
        """The id that ends a turn."""
        return self.tokenizer.special(self.processing.chat.end)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer whatever generation_config.json says."""
        return frozenset(self.tokenizer.special(name) for name in self.processing.stops)

    def published_ids(self) -> dict[str, int]:
        """The ids of vision tokens under the keys by which config.json states them."""
        return {key: self.tokenizer.special(name) for key, name in self.processing.chat.config_ids.items()}

    def files(self) -> dict[str, str]:
        """The processing files in the published layout, name to content."""
        p = self.processing
        if self._files is not None:
            return dict(self._files)
        template, end = self.chat.template(), p.chat.end
        return write_files(self.tokenizer, p.vision, template, end, self.context_tokens)

    def save(self, folder: Path) -> None:
        """Writes `files`; each appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files().items():
            part = folder / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            part.replace(folder / name)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text can produce."""
        return self.tokenizer.special_ids

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that stand for visual tokens and must never be sampled."""
        names = {*_VISION_PADS, *filter(None, self.processing.chat.pads)} & set(self.tokenizer.special_names)
        return frozenset(self.tokenizer.special(n) for n in names)

    def process(
        self,
        messages: Any = None,
        *,
        prompt: str | Sequence[str] | None = None,
        media: Sequence[Any] | None = None,
        budget: MediaBudget | None = None,
        generate: bool = True,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        fps: float | None = None,
        nframes: int | None = None,
        max_frames: int | None = None,
        resize: Resize = "exact",
    ) -> Packed:
        """Conversations, or raw prompts, as one pack.

        Args:
            messages: a conversation, or a list of conversations (one sequence each); for the accepted forms see
                `foveal.processing.messages.parse_conversation`. Nothing in their texts is special.
            prompt: instead of messages, a text for whoever knows the format. **Special tokens in it are
                honoured**, so never build it from other people's words. Every `<|image_pad|>` and
                `<|video_pad|>` is the place of one medium. A list of prompts makes one sequence each.
            media: the images and videos of `prompt` in order; for a list of prompts a list of lists.
            budget: bounds on media; None for the defaults of `MediaBudget`.
            generate: end where the assistant is to answer. Prompts are taken as they are.
            min_pixels, max_pixels, fps, nframes, max_frames, resize: for every medium whose own part does not say
                otherwise; see `foveal.processing.intake.Knobs`.

        Raises:
            InputError: a message or option is wrong; ContextError: the sequence is too long;
            MediaError, BudgetError: a medium is damaged or too large.
        """
        knobs = Knobs(
            min_pixels=min_pixels, max_pixels=max_pixels, fps=fps, nframes=nframes, max_frames=max_frames, resize=resize
        )
        budget = MediaBudget() if budget is None else budget
        if not isinstance(budget, MediaBudget):
            raise InputError(f"budget is {budget!r}; expected a foveal.MediaBudget.")
        if not isinstance(media, Sequence | None) or isinstance(media, str | bytes):
            raise InputError(f"media is a {type(media).__name__}; expected a list of images and videos.")
        if not isinstance(prompt, Sequence | None):
            raise InputError(f"the prompt is {prompt!r}; expected a text or a list of texts.")
        if (messages is None) == (prompt is None):
            raise InputError("pass either messages or prompt=, and not both.")
        if messages is not None:
            if media is not None:
                raise InputError("media= belongs to prompt=; in messages, images and videos are parts of the content.")
            return join([self._conversation(c, budget, knobs, generate) for c in parse_conversations(messages)])
        if isinstance(prompt, str):
            return self._prompt(prompt, media or (), budget, knobs)
        prompts = list(prompt or ())
        lists = [()] * len(prompts) if media is None else list(media)
        if len(prompts) != len(lists) or not all(isinstance(m, list | tuple) for m in lists):
            raise InputError(f"{len(prompts)} prompts need as many lists of media, one for each; got {len(lists)}.")
        return join([self._prompt(p, m, budget, knobs) for p, m in zip(prompts, lists, strict=True)])

    def _conversation(self, messages: list[Message], budget: MediaBudget, knobs: Knobs, generate: bool) -> Packed:
        asks = any(isinstance(p, AskPart) for m in messages for p in m.parts)
        if asks and not getattr(self.chat, "asks", False):
            raise InputError(
                "'ref' and 'grounding' are marks that this model's chat format does not have; ask in words instead."
            )
        parts = [p for m in messages for p in m.parts if isinstance(p, ImagePart | VideoPart)]
        opened = self._open(parts, budget, knobs)
        views = [o.medium.view for o in opened]

        def write_boxes(boxes: Sequence[Box]) -> list[Segment]:
            return self.processing.boxes.render(boxes, views)

        segments = self.chat.render(messages, boxes=write_boxes, generate=generate)
        if self.processing.shorten is None or not generate:
            return self._pack(segments, opened)
        segments = self.processing.shorten(segments, [o.medium for o in opened], self.tokenizer)
        first = min((s.medium for s in segments if isinstance(s, MediumSegment)), default=len(opened))
        moved = [replace(s, medium=s.medium - first) if isinstance(s, MediumSegment) else s for s in segments]
        return self._pack(moved, opened[first:], left_out=first)

    def _prompt(self, prompt: str, media: Sequence[Any], budget: MediaBudget, knobs: Knobs) -> Packed:
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"the prompt is {prompt!r}; expected a text of at least one character.")
        segments = self.tokenizer.split(prompt)
        if self.processing.places is not None:
            segments = self.processing.places(segments)
        placed, parts = place_media(segments, media, self.processing.chat.pads)
        return self._pack(placed, self._open(parts, budget, knobs))

    def _open(self, parts: Sequence[ImagePart | VideoPart], budget: MediaBudget, knobs: Knobs) -> list[Opened]:
        if len(parts) > budget.media:
            raise BudgetError(
                f"{len(parts)} images and videos in one conversation; the budget is {budget.media}. Send fewer or "
                "raise MediaBudget.media."
            )
        vision = self.processing.vision
        opened: list[Opened] = []
        tokens = 0
        for part in parts:
            # Once the context is full there will be an error; patches would be made in vain.
            fits = self.context_tokens is None or tokens <= self.context_tokens or self.processing.shorten is not None
            opened.append(vision.open(part, budget=budget, knobs=knobs, count=len(parts), patches=fits))
            tokens += opened[-1].medium.tokens
        return opened

    def _pack(self, segments: list[Segment], opened: list[Opened], *, left_out: int = 0) -> Packed:
        p = self.processing
        if p.arrange is not None:
            segments = p.arrange(segments, [o.medium for o in opened])
        packed = pack(segments, opened, self.tokenizer, p.vision, p.positions, self.context_tokens)
        if p.shorten is None:
            return packed
        return replace(packed, extra={**packed.extra, LEFT_OUT: np.array([left_out], dtype=np.int64)})

    def count(
        self,
        text: str = "",
        *,
        images: Sequence[tuple[int, int]] = (),
        videos: Sequence[VideoShape] = (),
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        fps: float | None = None,
        nframes: int | None = None,
        max_frames: int | None = None,
    ) -> Count:
        """Tokens of one user turn with media of these sizes, chat format included; nothing is opened.

        `images` are (width, height) in pixels. Exact: `process` gives the same number for real media.
        """
        knobs = Knobs(min_pixels=min_pixels, max_pixels=max_pixels, fps=fps, nframes=nframes, max_frames=max_frames)
        p, count = self.processing, len(images) + len(videos)
        media = [p.vision.measure_image(w, h, knobs=knobs, count=count) for w, h in images]
        media += [p.vision.measure_video(v, knobs=knobs, count=count) for v in videos]
        parts: list[Part] = [ImagePart(source=None) for _ in images]
        parts += [VideoPart(source=None) for _ in videos]
        parts += [TextPart(text=text)]
        segments = self.chat.render([Message(role="user", parts=tuple(parts))], boxes=lambda _: [], generate=True)
        if p.arrange is not None:
            segments = p.arrange(segments, media)
        total = len(self.tokenizer.encode_segments(segments, [m.tokens for m in media]).ids)
        return Count(tokens=total, text_tokens=total - sum(m.tokens for m in media), media=tuple(media))

    def read(self, answer: str | Sequence[int] | np.ndarray, packed: Packed, sequence: int = 0) -> Grounded:
        """Words and boxes of an answer to sequence number `sequence` of `packed`.

        `answer` is its token ids, or its text decoded with special tokens. Boxes refer to the last image or
        video before the answer, which is the last of the sequence; `Box.image` is its number in the
        conversation.
        """
        if not 0 <= sequence < len(packed):
            raise InputError(f"sequence {sequence} of a pack of {len(packed)}; count from 0.")
        views = [m.view for m in packed.media if m.sequence == sequence]
        split, decode = self.tokenizer.split_answer, self.tokenizer.decode_segments
        segments = split(answer) if isinstance(answer, str) else decode(answer)
        last = left_out(packed, sequence) + max(0, len(views) - 1)
        return parse(segments, self.processing.boxes, views[-1] if views else None, last)

    def reader(self, packed: Packed, sequence: int = 0) -> AnswerReader:
        """A reader for the answer to sequence number `sequence`, to be fed as the answer comes; see `read`."""
        views = [m.view for m in packed.media if m.sequence == sequence]
        last = left_out(packed, sequence) + max(0, len(views) - 1)
        return self.processing.boxes.reader(views[-1] if views else None, last)

    def parse(
        self, answer: str | Sequence[int] | np.ndarray, packed: Packed, sequence: int = 0
    ) -> tuple[str, tuple[Box, ...]]:
        """`read` as (text without tags, boxes in pixels of the user's image)."""
        grounded = self.read(answer, packed, sequence)
        return grounded.text, grounded.boxes


def left_out(packed: Packed, sequence: int = 0) -> int:
    """Media of a conversation that its family's window left out: all before the first of the sequence."""
    counts = packed.extra.get(LEFT_OUT)
    return 0 if counts is None else int(counts[sequence])
