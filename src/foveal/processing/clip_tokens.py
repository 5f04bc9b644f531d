"""CLIP's byte-level BPE: words end in `</w>`, all is lower case, and text stays text.

A text goes through `html.unescape` twice, as in the original code, then through the pipeline that published folders
state: Unicode NFC, runs of white space to one space, lower case; words, single digits and runs of signs apart.
The original code repairs text with the library ftfy before that (curly quotes made straight, mojibake undone);
neither transformers nor this module does.
"""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from foveal.core.config import read_json, text_of
from foveal.core.errors import ConfigError, ContextError, InputError
from foveal.processing.tokens import BYTE_LETTERS

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How the published pipeline takes a text apart (after lower case)."""

_PLAIN_FILES = ("tokenizer_config.json", "special_tokens_map.json")


class ClipCaptions:
    """Texts to the ids that CLIP's text tower reads: begin, text, end. Nothing is padded, as nothing sees padding.

    Args:
        rules: a parsed `tokenizer.json`.
        context: most ids of a text, begin and end included.
        begin, end: names of the two special tokens.
        files: the published files from which these come, which `files` gives back.

    Raises:
        ConfigError: the vocabulary is of another kind, lacks a byte, or lacks the special tokens.
    """

    def __init__(
        self,
        rules: Mapping[str, Any],
        *,
        context: int,
        begin: str = BEGIN,
        end: str = END,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.context = context
        self._files = dict(files or {})
        try:
            model = rules["model"]
            kind, suffix, vocabulary = model["type"], model.get("end_of_word_suffix"), dict(model["vocab"])
            added = {str(token["content"]): int(token["id"]) for token in rules.get("added_tokens") or ()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"not a tokenizer.json: {error!r}; use the file that the checkpoint ships.") from None
        if kind != "BPE" or suffix != WORD_END:
            raise ConfigError(f"the tokenizer is {kind} with word ends {suffix!r}; CLIP's is BPE with {WORD_END!r}.")
        if model.get("dropout"):
            raise ConfigError(f"the tokenizer drops merges at random (dropout={model['dropout']}); set it to null.")
        missing = [c + ending for c in BYTE_LETTERS for ending in ("", WORD_END) if c + ending not in vocabulary]
        if missing:
            raise ConfigError(
                f"the vocabulary lacks {len(missing)} of the 512 pieces for single bytes (first: {missing[0]!r}), so "
                "some texts would lose characters; add them."
            )
        known = {**vocabulary, **added}
        for name in (begin, end):
            if name not in known:
                raise ConfigError(f"the vocabulary has no {name!r}, which CLIP needs; use the checkpoint's own files.")
        self.begin, self.end = known[begin], known[end]
        self.special_ids = frozenset({self.begin, self.end, *added.values()})
        # The encoder has no added tokens, so nothing in a text can match one.
        bare = {**rules, "added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        try:
            self._encoder = tokenizers.Tokenizer.from_str(json.dumps(bare))
        except Exception as error:  # the library raises bare exceptions
            raise ConfigError(f"not a tokenizer.json that can be used: {error}.") from None

    @classmethod
    def from_folder(cls, folder: Path, *, context: int) -> "ClipCaptions":
        """Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`, of a published folder."""
        files = {name: text_of(folder / name) for name in _PLAIN_FILES if (folder / name).is_file()}
        settings = read_json(folder / "tokenizer_config.json") if "tokenizer_config.json" in files else {}
        names = (_name(settings.get("bos_token"), BEGIN), _name(settings.get("eos_token"), END))
        if (folder / "tokenizer.json").is_file():
            files["tokenizer.json"] = text_of(folder / "tokenizer.json")
            where, rules = "tokenizer.json", read_json(folder / "tokenizer.json")
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            files |= {name: text_of(folder / name) for name in ("vocab.json", "merges.txt")}
            where = "vocab.json"
            rules = clip_rules(read_json(folder / "vocab.json"), _merges(files["merges.txt"], folder / "merges.txt"))
        else:
            raise ConfigError(f"{folder} holds neither tokenizer.json nor vocab.json with merges.txt; fetch them.")
        try:
            return cls(rules, context=context, begin=names[0], end=names[1], files=files)
        except ConfigError as error:
            raise ConfigError(f"{folder / where}: {error}") from None

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text alone, in which nothing is special. `InputError` for half a surrogate pair."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
                "decode the text properly or remove that character."
            ) from None
        ids: list[int] = self._encoder.encode(html.unescape(html.unescape(text)), add_special_tokens=False).ids
        if not self.special_ids.isdisjoint(ids):
            raise ConfigError("the tokenizer builds a special token from plain text; its tokenizer.json is unsafe.")
        return ids

    def encode(self, text: str, *, truncate: bool = False) -> list[int]:
        """Begin, the text, end.

        Raises `ContextError` when they pass the context; with `truncate`, the end of the text is left out.
        """
        ids, room = self.encode_text(text), self.context - 2
        if len(ids) > room and not truncate:
            raise ContextError(
                f"a text of {len(ids)} tokens; the text tower reads {room} and two marks. Shorten it, or let it be cut "
                f"with truncate=True: {text[:60]!r}..."
            )
        return [self.begin, *ids[:room], self.end]

    def files(self) -> dict[str, str]:
        """The vocabulary as published files, name to content."""
        return dict(self._files)


def clip_rules(vocabulary: Mapping[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """The `tokenizer.json` that CLIP's `vocab.json` and `merges.txt` stand for."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary[name],
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name in (BEGIN, END)
            if name in vocabulary
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": WORD_END,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
    }


def _merges(text: str, path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split()
        if len(parts) != 2:
            raise ConfigError(f"{path}:{number}: {line!r} is no pair of pieces; fetch the file again.")
        pairs.append((parts[0], parts[1]))
    return pairs


def _name(token: Any, default: str) -> str:
    if token is None:
        return default
    if not isinstance(token, str | Mapping):
        raise ConfigError(f"tokenizer_config.json: a special token is {token!r}; expected a text.")
    return token if isinstance(token, str) else str(token.get("content", default))
