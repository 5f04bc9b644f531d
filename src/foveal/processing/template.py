"""A checkpoint's own chat template, where it differs from its family's format.

Templates are programs (Jinja) that paste what users say into one string. To keep text apart from template all
the same, every text is replaced by a random word before the program runs; its output is then cut at those
words. Special tokens are honoured between them and nowhere else. The program runs in Jinja's sandbox; it
comes from the checkpoint's folder, never from a request.
"""

import datetime
import json
import logging
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from foveal.core.box import Box
from foveal.core.errors import ConfigError, InputError
from foveal.processing.chat import BoxWriter, ChatFormat, FamilyChat
from foveal.processing.messages import BoxPart, ImagePart, Message, TextPart, VideoPart
from foveal.processing.segments import MediumSegment, Segment, SpecialSegment, TextSegment, as_text

log = logging.getLogger(__name__)

MAX_TEMPLATE_CHARS = 500_000
MAX_ADDED_CHARS = 1_000_000
"""What a template may add to the texts of a conversation; more means that it runs wild."""

Splitter = Callable[[str], list[Segment]]


@dataclass(frozen=True, kw_only=True)
class _Said:
    """A text of the conversation: the random word that stands for it, and what it becomes."""

    word: str
    turn: int
    segments: tuple[Segment, ...]


class TemplateChat:
    """Renders conversations with a Jinja template.

    Args:
        template: the program, as `chat_template.json` holds it.
        split: cuts a trusted text at special tokens (`Tokenizer.split`).
        family: the format of its family, for the names of pads and of the token that ends a turn.
        variables: further names that the template may use, such as `eos_token`.

    Raises:
        ConfigError: the template is no valid Jinja program.
    """

    def __init__(
        self, template: str, *, split: Splitter, family: FamilyChat, variables: Mapping[str, Any] | None = None
    ) -> None:
        self._template, self._split, self._pads, self._end = template, split, family.pads, family.end
        self.lists = getattr(family, "lists", False)
        if len(template) > MAX_TEMPLATE_CHARS:
            raise ConfigError(f"the chat template has {len(template)} characters; {MAX_TEMPLATE_CHARS} are the limit.")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            self._program = environment.from_string(
                template, globals={"add_vision_id": getattr(family, "number_media", False), **(variables or {})}
            )
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the checkpoint's chat template is no valid Jinja (line {error.lineno}): {error}."
            ) from None

    def template(self) -> str:
        """The program."""
        return self._template

    def run(self, messages: Sequence[Mapping[str, Any]], *, generate: bool, room: int = 0) -> str:
        """The template's own output for plain mappings; `room` characters are expected from the texts."""
        words, length = [], 0
        try:
            for piece in self._program.generate(messages=list(messages), add_generation_prompt=generate):
                words.append(piece)
                length += len(piece)
                if length > room + MAX_ADDED_CHARS:
                    raise InputError(
                        f"the chat template writes more than {MAX_ADDED_CHARS} characters; it is unusable."
                    )
        except InputError:
            raise
        except Exception as error:  # a template can fail in any way that Python can
            raise InputError(
                f"the checkpoint's chat template refuses this conversation: {type(error).__name__}: {error}."
            ) from None
        return "".join(words)

    def render(self, messages: Sequence[Message], *, boxes: BoxWriter, generate: bool) -> list[Segment]:
        """Segments of a conversation.

        Raises:
            InputError: the template refuses the conversation, leaves out, repeats, reorders or edits a text
                or a medium. Then no rendering is both faithful and safe.
        """
        said: list[_Said] = []
        plain = [_as_mapping(m, turn, boxes, said, lists=self.lists) for turn, m in enumerate(messages)]
        output = self.run(plain, generate=generate, room=sum(len(s.word) for s in said))
        cuts = re.split("(" + "|".join(s.word for s in said) + ")", output) if said else [output]
        if cuts[1::2] != [s.word for s in said]:
            raise InputError(
                "the checkpoint's chat template leaves out, repeats or reorders a text of this conversation, so it "
                "cannot be rendered safely; shorten the conversation to turns that the template keeps."
            )
        texts = iter(as_text(s.segments) for s in said)
        whole = "".join(next(texts) if i % 2 else cut for i, cut in enumerate(cuts))
        actual = {s.word: as_text(s.segments) for s in said}
        direct = self.run(_filled(plain, actual), generate=generate, room=len(whole))
        if direct != whole:
            raise InputError(
                "the checkpoint's chat template edits what is said (for example strips spaces or looks for tags in "
                "it), so text and template cannot be told apart; remove outer spaces and tags from the texts."
            )
        return self._assembled(cuts, said, messages, generate)

    def _assembled(
        self, cuts: list[str], said: list[_Said], messages: Sequence[Message], generate: bool
    ) -> list[Segment]:
        """Texts as they are, template parts split at special tokens, media in the place of pads."""
        media = [(turn, p) for turn, m in enumerate(messages) for p in m.parts if isinstance(p, ImagePart | VideoPart)]
        wanted = [self._pads[0 if isinstance(part, ImagePart) else 1] for _, part in media]
        found: list[str] = []
        speech = _Speech(messages, self._end, "assistant" if generate else messages[-1].role)
        for i, cut in enumerate(cuts):
            if i % 2:
                speech.say(said[i // 2].segments, said[i // 2].turn)
                continue
            for piece in self._split(cut):
                if not (isinstance(piece, SpecialSegment) and piece.name in self._pads):
                    speech.gap.append(piece)
                    continue
                number = len(found)
                found.append(piece.name)
                if found == wanted[: len(found)]:
                    speech.say((MediumSegment(medium=number, pad=piece.name),), media[number][0])
        if found != wanted:
            raise InputError(
                f"the checkpoint's chat template writes {len(found)} places for {len(wanted)} images and videos, or in "
                "another order; it cannot be used for this conversation."
            )
        speech.fill(len(messages))
        return speech.segments


class _Speech:
    """Gathers segments and finds out to whose turn the template's own parts between them belong.

    A turn lasts through the first `end` token after what was said in it (the first special token where the
    template has no `end`); what follows introduces the next turn. The assistant's is learned through that token.
    """

    def __init__(self, messages: Sequence[Message], end: str, next_role: str) -> None:
        self.messages, self.end, self.next_role = messages, end, next_role
        self.segments: list[Segment] = []
        self.gap: list[Segment] = []
        self.turn = -1

    def say(self, said: Sequence[Segment], turn: int) -> None:
        self.fill(turn)
        learned = self.role(turn) == "assistant"
        for s in said:
            visual = isinstance(s, MediumSegment)
            self.segments.append(replace(s, role=self.role(turn), turn=turn, learned=learned and not visual))

    def role(self, turn: int) -> str:
        if turn < 0:
            return "system"
        return self.messages[turn].role if turn < len(self.messages) else self.next_role

    def fill(self, turn: int) -> None:
        """Gives the parts that wait in `gap` to the turn that was open and to `turn`, which begins now."""
        specials = [i for i, s in enumerate(self.gap) if isinstance(s, SpecialSegment)]
        ends = [i for i in specials if self.gap[i] == SpecialSegment(name=self.end)]
        last = ends[0] if ends else specials[0] if specials and self.turn >= 0 else -1
        for i, s in enumerate(self.gap):
            whose = self.turn if i <= last or turn == self.turn else turn
            learned = i <= last and self.turn != turn and self.role(whose) == "assistant"
            self.segments.append(replace(s, role=self.role(whose), turn=whose, learned=learned))
        self.gap, self.turn = [], turn


def choose_format(
    template: str | None, family: FamilyChat, *, split: Splitter, variables: Mapping[str, Any] | None = None
) -> ChatFormat:
    """The family's format if the checkpoint's template writes the same, else the template itself.

    A template that has no place for an image (folders made from a text model's tokenizer carry such) is left
    aside for the family's format, with a warning. A family may bring conversations of its own to compare by, as
    `probes`, and say with `lists` that its templates take the content of every message as a list of parts.
    """
    if template is None:
        return family
    own = TemplateChat(template, split=split, family=family, variables=variables)
    probes = getattr(family, "probes", None) or [(m, generate) for m in _PROBES for generate in (False, True)]
    if all(
        _written(own, messages, generate) == as_text(family.render(messages, boxes=_no_boxes, generate=generate))
        for messages, generate in probes
    ):
        return family
    if family.pads[0] not in (_written(own, _WITH_IMAGE, True) or ""):
        log.warning("the checkpoint's chat template has no place for images; its family's own format is used instead.")
        return family
    return own


def _written(own: TemplateChat, messages: Sequence[Message], generate: bool) -> str | None:
    """What a template makes of a conversation; None if it refuses it."""
    plain = [_as_mapping(m, 0, _no_boxes, None, lists=own.lists) for m in messages]
    try:
        return own.run(plain, generate=generate, room=MAX_ADDED_CHARS)
    except InputError:
        return None


def _no_boxes(boxes: Sequence[Box]) -> list[Segment]:
    raise InputError(f"{len(boxes)} boxes in a place where none is expected.")


def _probe(*turns: tuple[str, Any]) -> list[Message]:
    made = []
    for role, content in turns:
        parts = [content] if isinstance(content, str) else content
        made.append(Message(role=role, parts=tuple(TextPart(text=p) if isinstance(p, str) else p for p in parts)))
    return made


_IMAGE, _VIDEO = ImagePart(source=None), VideoPart(source=None)
_WITH_IMAGE = _probe(("user", [_IMAGE, "What is this?"]))
_PROBES = (
    _probe(("user", " \n one line \n ")),
    _probe(("system", "Be brief."), ("user", "Hello")),
    _probe(("user", [_IMAGE, "What is this?"]), ("assistant", "A cat. "), ("user", ["And", _IMAGE, " this", _IMAGE])),
    _probe(("user", [_VIDEO, _IMAGE, "x"]), ("assistant", " y"), ("user", [_VIDEO, "z"]), ("assistant", "")),
    _probe(("system", ""), ("user", ["a", "b"]), ("assistant", "c</think>d"), ("tool", "{}"), ("assistant", "e")),
)
"""Conversations by which two formats are compared; together they hold all that messages can hold."""


def _as_mapping(
    message: Message, turn: int, boxes: BoxWriter, said: list[_Said] | None, *, lists: bool = False
) -> dict[str, Any]:
    """A message as templates expect it. With `said`, a random word stands for every text and is noted there.

    Text alone is given as a string, which most templates read; with media, or with `lists`, as a list of parts.
    """
    content: list[dict[str, Any]] = []
    for kind, group in groupby(message.parts, key=lambda p: BoxPart if isinstance(p, BoxPart) else None):
        parts = list(group)
        if kind is BoxPart:
            segments = tuple(boxes([p.box for p in parts if isinstance(p, BoxPart)]))
            content.append({"type": "text", "text": _word(segments, turn, said)})
            continue
        for part in parts:
            if isinstance(part, TextPart):
                segments = (TextSegment(text=part.text, tag=part.tag),)
                content.append({"type": "text", "text": _word(segments, turn, said)})
            else:
                content.append({"type": "image" if isinstance(part, ImagePart) else "video"})
    if not lists and all(c["type"] == "text" for c in content):
        words = [c["text"] for c in content] or [_word((TextSegment(text=""),), turn, said)]
        return {"role": message.role, "content": "".join(words)}
    return {"role": message.role, "content": content}


def _word(segments: tuple[Segment, ...], turn: int, said: list[_Said] | None) -> str:
    if said is None:
        return as_text(segments)
    # 40 random letters (228 bits): no text can hold it, and no template has a reason to change it.
    word = "".join(secrets.choice(string.ascii_letters) for _ in range(40))
    said.append(_Said(word=word, turn=turn, segments=segments))
    return word


def _filled(messages: list[dict[str, Any]], actual: Mapping[str, str]) -> list[dict[str, Any]]:
    """The same messages with the real texts in the place of the random words."""
    if not actual:
        return messages
    words = re.compile("|".join(actual))

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return words.sub(lambda found: actual[found[0]], value)
        if isinstance(value, list):
            return [fill(v) for v in value]
        if isinstance(value, dict):
            return {k: fill(v) for k, v in value.items()}
        return value

    return [fill(m) for m in messages]


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
