"""Qwen2-style byte-level BPE in which text stays text.

`Tokenizer` reads a published `tokenizer.json`. Text goes through an encoder that knows no added token at
all, so `"<|im_end|>"` in a user's message is a few ordinary tokens. Special ids enter a prompt only
where a renderer put a `SpecialSegment` or `MediumSegment`.
"""

import codecs
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tokenizers

from foveal.core.errors import ConfigError, InputError, neighbours
from foveal.core.shapes import Int
from foveal.processing.segments import MediumSegment, Segment, SpecialSegment, TextSegment


def _byte_alphabet() -> dict[str, int]:
    """The 256 printable characters that stand for bytes in a byte-level vocabulary (the GPT-2 convention).

    Printable Latin-1 characters stand for their own byte; the others, in order, for U+0100 onwards.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(own))
    return {chr(b): b for b in own} | {chr(0x100 + i): b for i, b in enumerate(others)}


TokenIds: TypeAlias = Iterable[int] | Int[np.ndarray, "T"]

BYTE_LETTERS = _byte_alphabet()
"""The letters of byte-level vocabularies and the bytes that they stand for."""
_NEVER = frozenset(c for c, byte in BYTE_LETTERS.items() if byte in (0xC0, 0xC1) or byte >= 0xF5)
"""Letters for bytes that no UTF-8 text holds (RFC 3629); DeepSeek's vocabularies leave them out."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of a list of segments; `owners[i]` is the segment in which token i begins."""

    ids: list[int]
    owners: list[int]


class Tokenizer:
    """Text to token ids and back.

    Args:
        content: the text of a `tokenizer.json` (byte-level BPE).
        added: further added tokens, in the form of the file's own list (`content`, `id`, `special`).
        files: what it is published as, by file name, if not as a tokenizer.json.

    DeepSeek's files list the letters of unused bytes (ö, ü, ...) as added tokens. They are no control tokens: text
    that has such a letter becomes its id, as published, and they are not among `special_ids`.

    Raises:
        ConfigError: the file is not byte-level BPE, lacks a byte, or gives one id two names.
    """

    def __init__(
        self, content: str, *, added: Iterable[Mapping[str, Any]] = (), files: Mapping[str, str] | None = None
    ) -> None:
        self.content = content
        self.files = dict(files or {"tokenizer.json": content})
        rules = _checked(content)
        self._special: dict[str, int] = {}
        hidden = set()
        self.added = [dict(token) for token in [*rules["added_tokens"], *added]]
        letters = {int(t["id"]): dict(t) for t in self.added if t["content"] in _NEVER and not t.get("special")}
        self._letters = {number: str(token["content"]) for number, token in letters.items()}
        for token in self.added:
            name, number = str(token["content"]), int(token["id"])
            if number in letters:
                continue
            if self._special.setdefault(name, number) != number:
                raise ConfigError(
                    f"added token {name!r} has the ids {self._special[name]} and {number}; "
                    "make tokenizer.json and tokenizer_config.json agree."
                )
            if token.get("special"):
                hidden.add(number)
            for rule in ("lstrip", "rstrip", "single_word"):
                if token.get(rule):
                    raise ConfigError(
                        f"added token {name!r} has {rule} on, which changes the text beside it; turn it off."
                    )
        self._hidden = frozenset(hidden)
        self._names = {number: name for name, number in self._special.items()}
        if len(self._names) != len(self._special):
            raise ConfigError("two added tokens share one id; give each its own.")
        # The text encoder has no added tokens but letters, so nothing in a text can match one.
        bare = {**rules, "added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        try:
            self._encoder = tokenizers.Tokenizer.from_str(json.dumps(bare))
        except Exception as error:  # the library raises bare exceptions
            raise ConfigError(f"not a tokenizer.json that can be used: {error}.") from None
        self._encoder.add_tokens([tokenizers.AddedToken(c, normalized=True) for c in self._letters.values()])
        # The encoder numbers letters by itself.
        self._published = {self._encoder.token_to_id(c): number for number, c in self._letters.items()}

    @classmethod
    def from_file(cls, path: Path, *, added: Iterable[Mapping[str, Any]] = ()) -> "Tokenizer":
        """Reads `path`; raises `ConfigError` if it is missing or is no tokenizer file."""
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}. A checkpoint needs its tokenizer.json.") from None
        try:
            return cls(content, added=added)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of all added tokens: none of them can come out of text."""
        return frozenset(self._names)

    @property
    def content_ids(self) -> frozenset[int]:
        """Those of `special_ids` that are content (`"special": false` in the file), such as Qwen3's `<tool_call>`."""
        return self.special_ids - self._hidden

    @property
    def special_names(self) -> tuple[str, ...]:
        """Added tokens in the order of their ids."""
        return tuple(self._names[i] for i in sorted(self._names))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id. A model's embedding may have more rows."""
        ids = [*self._encoder.get_vocab(with_added_tokens=False).values(), *self._names, *self._letters]
        return max(ids) + 1

    def special(self, name: str) -> int:
        """The id of an added token; `ConfigError` if the vocabulary has none of this name."""
        try:
            return self._special[name]
        except KeyError:
            raise ConfigError(
                f"the tokenizer has no special token {name!r}; {neighbours(name, self._special)}"
            ) from None

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special.

        Raises:
            InputError: the text holds half a surrogate pair, which no UTF-8 file or terminal can carry.
        """
        return self._encode(text)[0]

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids and, for each, the index of the character in which it begins."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
                "decode the text properly or remove that character."
            ) from None
        encoding = self._encoder.encode(text, add_special_tokens=False)
        ids = [self._published.get(i, i) for i in encoding.ids] if self._published else encoding.ids
        if not self._names.keys().isdisjoint(ids):
            raise ConfigError(
                "the tokenizer's merges build a special token from plain text; its tokenizer.json is unsafe to use."
            )
        return ids, [start for start, _ in encoding.offsets]

    def encode_segments(self, segments: Sequence[Segment], tokens: Sequence[int] = ()) -> Encoded:
        """Ids of rendered segments; medium number m becomes `tokens[m]` pads, in as many parts as it has.

        Texts that stand next to each other are joined first: `"user\\n"` before a message that begins with
        a line break is one token in the published rendering, and so it is here. Such a token belongs
        to the segment in which it begins. A text that is `alone` is joined with nothing. A tag that the vocabulary
        has as content is its token.
        """
        segments = [self._tagged(s) if isinstance(s, TextSegment) and s.tag else s for s in segments]
        ids: list[int] = []
        owners: list[int] = []
        breaks = list(accumulate(isinstance(s, TextSegment) and s.alone for s in segments))

        def joined(pair: tuple[int, Segment]) -> tuple[bool, int, bool]:
            number, segment = pair
            return isinstance(segment, TextSegment), breaks[number], getattr(segment, "alone", False)

        for (plain, _, _), group in groupby(enumerate(segments), key=joined):
            if plain:
                texts = [(i, s.text) for i, s in group if isinstance(s, TextSegment)]
                found, begins = self._encode("".join(text for _, text in texts))
                edges, length = [], 0
                for _, text in texts:
                    edges.append(length)
                    length += len(text)
                ids += found
                owners += [texts[bisect_right(edges, b) - 1][0] for b in begins]
                continue
            for i, segment in group:
                if isinstance(segment, SpecialSegment):
                    new = [self.special(segment.name)]
                elif isinstance(segment, MediumSegment):
                    new = [self.special(segment.pad)] * (tokens[segment.medium] // segment.parts)
                else:
                    raise InputError(f"{type(segment).__name__} cannot be encoded; expected text, special or medium.")
                ids += new
                owners += [i] * len(new)
        return Encoded(ids=ids, owners=owners)

    def _tagged(self, segment: TextSegment) -> Segment:
        if self._special.get(segment.text) not in self.content_ids:
            return segment
        return SpecialSegment(name=segment.text, role=segment.role, turn=segment.turn, learned=segment.learned)

    def split(self, text: str) -> list[Segment]:
        """A trusted text (a template, a raw prompt) as text and special segments.

        Never use it on what a user wrote: it honours special tokens.
        """
        parts = self._special_pattern.split(text) if self._special else [text]
        return [SpecialSegment(name=part) if i % 2 else TextSegment(text=part) for i, part in enumerate(parts) if part]

    def split_answer(self, text: str) -> list[Segment]:
        """As `decode_segments`, for an answer that was decoded with its control tokens."""
        return [
            TextSegment(text=s.name)
            if isinstance(s, SpecialSegment) and self._special[s.name] not in self._hidden
            else s
            for s in self.split(text)
        ]

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        names = sorted(self._special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for a row of the model beyond the vocabulary."""
        if token < 0:
            raise InputError(f"token id {token} is negative; ids begin at 0.")
        name = self._names.get(token) or self._letters.get(token)
        if name is not None:
            return name.encode()
        piece = self._encoder.id_to_token(token)
        return b"" if piece is None else bytes(BYTE_LETTERS[c] for c in piece)

    def decode(self, ids: TokenIds, *, skip_special: bool = False) -> str:
        """Text of `ids`. Bytes that are no UTF-8 become U+FFFD; rows beyond the vocabulary have no text.

        `skip_special` leaves out control tokens such as `<|im_end|>`; added tokens that are content
        (`"special": false` in the file, e.g. `<tool_call>`) stay.
        """
        stream = self.stream(skip_special=skip_special)
        return stream.push(ids) + stream.finish()

    def decode_segments(self, ids: TokenIds) -> list[Segment]:
        """Text and control tokens of an answer, so that a tag can be told from text that spells one."""
        segments: list[Segment] = []
        for control, group in groupby(map(int, ids), key=self._hidden.__contains__):
            if control:
                segments += [SpecialSegment(name=self._names[i]) for i in group]
            else:
                segments.append(TextSegment(text=self.decode(group)))
        return segments

    def stream(self, *, skip_special: bool = False) -> "TextStream":
        """A decoder to be fed piece by piece."""
        return TextStream(self, self._hidden if skip_special else frozenset())


class TextStream:
    """Decodes ids as they come: never half a character, and all pieces together equal `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: TokenIds) -> str:
        """The text that `ids` complete; may be empty while a character is unfinished."""
        pieces = (self._tokenizer.token_bytes(int(i)) for i in ids if int(i) not in self._hidden)
        return self._utf8.decode(b"".join(pieces))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _checked(content: str) -> dict[str, Any]:
    """The parsed file, after checking that it is what `Tokenizer` can read."""
    try:
        rules = json.loads(content)
        model, names = rules["model"], {str(t["content"]): int(t["id"]) for t in rules["added_tokens"]}
        kind, vocabulary = model["type"], dict(model["vocab"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"not a tokenizer.json: {error!r}. Use the file that the checkpoint ships.") from None
    if kind != "BPE" or '"ByteLevel"' not in json.dumps([rules.get("pre_tokenizer"), rules.get("decoder")]):
        raise ConfigError(f"the tokenizer is {kind} without a byte level; byte-level BPE (Qwen2's kind) is expected.")
    if model.get("dropout"):
        raise ConfigError(f"the tokenizer drops merges at random (dropout={model['dropout']}); set it to null.")
    missing = [c for c in BYTE_LETTERS if c not in vocabulary and c not in _NEVER]
    if missing:
        raise ConfigError(
            f"the vocabulary lacks {len(missing)} of 243 bytes (first: 0x{BYTE_LETTERS[missing[0]]:02x}), so "
            "some texts would lose characters; add them."
        )
    strange = set("".join(vocabulary.keys() - names.keys())) - BYTE_LETTERS.keys()
    if strange:
        raise ConfigError(f"the vocabulary has characters that stand for no byte: {sorted(strange)[:5]}.")
    for name, number in names.items():
        if vocabulary.get(name, number) != number:
            raise ConfigError(f"{name!r} is id {vocabulary[name]} in the vocabulary and {number} as an added token.")
    taken = set(vocabulary.values())
    for name, number in names.items():
        if number in taken and vocabulary.get(name) != number:
            raise ConfigError(f"added token {name!r} takes id {number}, which is a token of plain text.")
    return dict(rules)
