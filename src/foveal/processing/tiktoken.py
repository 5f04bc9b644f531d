"""Vocabularies as tiktoken stores them: one token a line, its bytes in base64 and its rank."""

import base64
import binascii
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.core.errors import ConfigError
from foveal.processing.tokens import BYTE_LETTERS, Tokenizer

FILE = "qwen.tiktoken"

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen's tokenizer cuts a text before it merges bytes."""


def read_tiktoken(folder: Path, specials: Sequence[str], settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in `folder`: `qwen.tiktoken`, followed by `specials` in this order.

    `settings` is what a saved tokenizer_config.json says if the folder has none.

    Raises `ConfigError` when a file is missing or damaged, or no tokenizer.
    """
    path, beside = folder / FILE, folder / "tokenizer_config.json"
    try:
        ranks = path.read_text(encoding="ascii")
        config = beside.read_text(encoding="utf-8") if beside.is_file() else json.dumps(settings, indent=2) + "\n"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. The checkpoint needs its {FILE}.") from None
    try:
        return from_ranks(ranks, specials, files={FILE: ranks, "tokenizer_config.json": config})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def from_ranks(text: str, specials: Sequence[str], *, files: Mapping[str, str]) -> Tokenizer:
    """A tokenizer from the lines of a rank file; `files` are what it is saved as.

    tiktoken joins the neighbouring pair whose union has the lowest rank, again and again. A tokenizer.json
    lists the pairs themselves. Both do the same if every token is made, by lower ranks alone, of
    exactly two parts; that pair is its merge. A token for which this does not hold is a `ConfigError`.
    """
    ranks = _ranks(text)
    letters = {byte: letter for letter, byte in BYTE_LETTERS.items()}  # str.translate wants numbers of characters
    spelled = {token: token.decode("latin-1").translate(letters) for token in ranks}
    merges = [[spelled[left], spelled[right]] for left, right in _merges(ranks)]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {spelled[token]: rank for token, rank in ranks.items()},
        "merges": merges,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    first = max(ranks.values()) + 1
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": first + i, "content": name, "special": True, "normalized": False} for i, name in enumerate(specials)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]},
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
    return Tokenizer(json.dumps(content, ensure_ascii=False), files=files)


def _ranks(text: str) -> dict[bytes, int]:
    """Tokens and their ranks, which have to be 0, 1, 2, ... in any order."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ConfigError(f"line {number} is {line[:40]!r}; expected a token in base64 and its rank.") from None
    if not ranks or set(ranks.values()) != set(range(len(ranks))):
        raise ConfigError(f"the ranks of its {len(ranks)} tokens are not 0 to {len(ranks) - 1}; is the file cut?")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts of every token of several bytes that lower ranks leave, in the order of their ranks."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        if len(token) == 1:
            continue
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        found = [(a, b) for a, b in halves if ranks.get(a, rank) < rank and ranks.get(b, rank) < rank]
        if len(found) > 1:  # which of them depends on the order in which the token's own bytes are joined
            parts = [token[i : i + 1] for i in range(len(token))]
            while len(parts) > 2:
                unions = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
                best = min(unions)
                if best >= rank:
                    break
                at = unions.index(best)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found = [(parts[0], parts[1])] if len(parts) == 2 else []
        if not found:
            raise ConfigError(f"token {token!r} of rank {rank} is not made of two tokens of lower ranks.")
        merges.append(found[0])
    return merges
