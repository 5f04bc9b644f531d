"""SentencePiece model files (`spiece.model`) as rules of the tokenizers library, without the SentencePiece library.

The file is a protocol buffer: field 1 the pieces (1 text, 2 score, 3 kind), field 2 how it was trained (3 kind of
model, 35 bytes for unknown characters), field 3 how text is normalised (2 compiled character table, 3 a space is
put before the text, 4 runs of spaces become one, 5 spaces become U+2581). Only the unigram model is read
(Kudo 2018), which SigLIP and T5 use.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from foveal.core.errors import ConfigError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"

APART = "\ufdd0"
"""A code point that is no character stands before the names of pieces that no text may spell."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, kw_only=True)
class SentencePieceFile:
    """What a `spiece.model` holds."""

    pieces: tuple[Piece, ...]
    table: bytes
    space_first: bool
    one_space: bool
    bytes_for_unknown: bool

    @property
    def unknown(self) -> int:
        """The id of what the vocabulary does not have."""
        return next(number for number, piece in enumerate(self.pieces) if piece.kind == UNKNOWN)

    @property
    def special(self) -> dict[str, int]:
        """Pieces that no text can produce, by name."""
        return {p.text: n for n, p in enumerate(self.pieces) if p.kind in (UNKNOWN, CONTROL, USER, UNUSED)}

    def normalized(self, text: str) -> str:
        """`text` with every longest match of the table replaced: Unicode NFKC and more, as the model was trained.

        The tokenizers library has this step too, but drops a combining mark after a character that is replaced.
        """
        if not self.table:
            return text
        (size,) = struct.unpack_from("<I", self.table)
        trie = memoryview(self.table)[4 : 4 + size].cast("I")
        data, parts, place = text.encode("utf-8"), [], 0
        while place < len(data):
            length, start = _longest(trie, data, place)
            if length:
                begin = 4 + size + start
                parts.append(self.table[begin : self.table.find(0, begin)])
            else:
                length = _LENGTH[data[place] >> 4]
                parts.append(data[place : place + length])
            place += length
        return b"".join(parts).decode("utf-8")

    def rules(self) -> dict[str, Any]:
        """The `tokenizer.json` that gives the same ids for every text that went through `normalized`. Special pieces
        have names that no text spells."""
        normalizers: list[dict[str, Any]] = []
        if self.one_space:
            normalizers.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
            normalizers.append({"type": "Strip", "strip_left": True, "strip_right": True})
        normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
        if self.space_first:
            normalizers.append({"type": "Prepend", "prepend": SPACE})
        hidden = {*self.special.values()}
        vocabulary = [(APART + p.text if n in hidden else p.text, p.score) for n, p in enumerate(self.pieces)]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True},
            "model": {
                "type": "Unigram",
                "unk_id": self.unknown,
                "vocab": vocabulary,
                "byte_fallback": self.bytes_for_unknown,
            },
        }


def read_sentencepiece(content: bytes) -> SentencePieceFile:
    """Reads a `spiece.model`. Raises `ConfigError` for a damaged file and for models other than unigram."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for field, value in _fields(content):
            if field == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                pieces.append(Piece(text=piece[1].decode("utf-8"), score=score, kind=piece.get(3, NORMAL)))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
    except (IndexError, KeyError, ValueError, AttributeError, TypeError, struct.error) as error:
        raise ConfigError(f"not a SentencePiece model: {error!r}; fetch the file again.") from None
    kind = trainer.get(3, 1)
    if kind != 1:
        names = {2: "BPE", 3: "word", 4: "character"}
        raise ConfigError(
            f"the SentencePiece model is a {names.get(kind, kind)} model; only unigram is read. Convert it to "
            "tokenizer.json with the tokenizers library, and put that beside it."
        )
    if sum(piece.kind == UNKNOWN for piece in pieces) != 1:
        raise ConfigError("the SentencePiece model has no one piece for what is unknown; fetch the file again.")
    table = normalizer.get(2, b"")
    if table and (
        len(table) < 8 or not 4 <= (size := int.from_bytes(table[:4], "little")) <= len(table) - 5 or size % 4
    ):
        raise ConfigError("the SentencePiece model has a damaged character table; fetch the file again.")
    if not normalizer.get(5, 1):
        raise ConfigError("the SentencePiece model keeps spaces as they are, which is not supported.")
    return SentencePieceFile(
        pieces=tuple(pieces),
        table=table,
        space_first=bool(normalizer.get(3, 1)),
        one_space=bool(normalizer.get(4, 1)),
        bytes_for_unknown=bool(trainer.get(35, 0)),
    )


def _longest(trie: memoryview, data: bytes, place: int) -> tuple[int, int]:
    """Length of the longest key of the table that stands at `place` (0 for none), and its value.

    The table is a double array in the form of darts-clone: an entry holds a label (low 8 bits), whether a value
    follows (bit 8), and the distance to its children (from bit 10, times 256 if bit 9 is set).
    """
    found = (0, 0)
    node = _children(trie[0])
    for at in range(place, len(data)):
        node ^= data[at]
        if node >= len(trie) or trie[node] & 0x800000FF != data[at]:
            break
        unit = trie[node]
        node ^= _children(unit)
        if unit >> 8 & 1 and node < len(trie):
            found = (at + 1 - place, trie[node] & 0x7FFFFFFF)
    return found


def _children(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)


_LENGTH = (*(1,) * 12, 2, 2, 3, 4)
"""Bytes of a UTF-8 character by the high half of its first byte."""


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: numbers for varints, bytes for all else."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield field, value
            continue
        if wire == 2:
            length, place = _varint(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + length > len(data):
            raise ValueError("the file ends within a field")
        yield field, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
