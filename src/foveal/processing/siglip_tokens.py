"""Texts of SigLIP: SentencePiece pieces, the end, and padding up to the whole context, which the tower reads too.

SigLIP 1 was trained on texts in lower case, without ASCII punctuation and with single spaces; its vocabulary is a
unigram model (`spiece.model`). SigLIP 2 was trained on texts in lower case with Gemma's vocabulary
(`tokenizer.json`, byte-pair encoding). In both, text stays text: `"</s>"` in a caption is no end.
"""

import json
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, ContextError, InputError
from foveal.processing.sentencepiece import APART, SPACE, read_sentencepiece

SPIECE, RULES = "spiece.model", "tokenizer.json"
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonical(text: str, *, lower: bool = True) -> str:
    """SigLIP 1's cleaning: lower case, ASCII punctuation out, runs of white space to one space, none at the ends."""
    text = (text.lower() if lower else text).translate(_NO_PUNCTUATION)
    return re.sub(r"\s+", " ", text).strip()


class SiglipCaptions:
    """Texts to `context` ids each: text, end, padding.

    Args:
        rules: a parsed `tokenizer.json`, for texts only.
        special: names and ids of tokens that no text may produce.
        clean: what a text goes through first.
        before, after: ids around every text.
        pad: the id of padding.
        context: ids of every text.
        pad_left: padding stands before the text, not after it.
        files: the published files from which these come, which `files` gives back.
    """

    def __init__(
        self,
        rules: Mapping[str, Any],
        *,
        special: Mapping[str, int],
        clean: Callable[[str], str],
        before: tuple[int, ...] = (),
        after: tuple[int, ...],
        pad: int,
        context: int,
        pad_left: bool = False,
        files: Mapping[str, str | bytes] | None = None,
    ) -> None:
        self.context, self.before, self.after, self.pad = context, before, after, pad
        self.special_ids = frozenset(special.values())
        self._clean, self._pad_left, self._files = clean, pad_left, dict(files or {})
        try:
            self._encoder = tokenizers.Tokenizer.from_str(json.dumps(rules))
        except Exception as error:  # the library raises bare exceptions
            raise ConfigError(f"not a tokenizer.json that can be used: {error}.") from None

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text alone, in which nothing is special. `InputError` for half a surrogate pair."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
                "decode the text properly or remove that character."
            ) from None
        cleaned = self._clean(text)
        ids: list[int] = self._encoder.encode(cleaned, add_special_tokens=False).ids if cleaned else []
        return ids

    def encode(self, text: str, *, truncate: bool = False) -> list[int]:
        """The text, its end, and padding: always `context` ids.

        Raises `ContextError` when text and end pass the context; with `truncate`, the rest of the text is left out.
        """
        ids, room = self.encode_text(text), self.context - len(self.before) - len(self.after)
        if len(ids) > room and not truncate:
            raise ContextError(
                f"a text of {len(ids)} tokens; the text tower reads {room} and the end. Shorten it, or let it be cut "
                f"with truncate=True: {text[:60]!r}..."
            )
        whole = [*self.before, *ids[:room], *self.after]
        padding = [self.pad] * (self.context - len(whole))
        return [*padding, *whole] if self._pad_left else [*whole, *padding]

    def files(self) -> dict[str, str | bytes]:
        """The vocabulary as published files, name to content."""
        return dict(self._files)


def read_captions(folder: Path, *, context: int) -> SiglipCaptions:
    """The vocabulary of a published folder: `spiece.model` (SigLIP 1) if it is there, else `tokenizer.json`.

    Raises `ConfigError` when a file is missing or damaged, or asks for something that is not supported.
    """
    files: dict[str, str | bytes] = {n: _bytes(folder / n).decode() for n in _BESIDE if (folder / n).is_file()}
    settings = read_json(folder / _BESIDE[0]) if _BESIDE[0] in files else {}
    side = settings.get("padding_side", "right")
    if side not in ("left", "right"):
        raise ConfigError(f"{folder / _BESIDE[0]}: padding_side is {side!r}; expected 'left' or 'right'.")
    lower = bool(settings.get("do_lower_case", True))
    for name in (SPIECE, RULES):
        if (folder / name).is_file():
            files[name] = _bytes(folder / name) if name == SPIECE else _bytes(folder / name).decode()
    common: dict[str, Any] = {"context": context, "pad_left": side == "left", "files": files}
    where = folder / (SPIECE if SPIECE in files else RULES)
    try:
        if SPIECE in files:
            return _from_spiece(_bytes(where), settings, lower, common)
        if RULES in files:
            return _from_rules(read_json(where), settings, lower, common)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    raise ConfigError(f"{folder} holds neither {SPIECE} nor {RULES}; fetch the one that the checkpoint ships.")


def _from_spiece(content: bytes, settings: Mapping[str, Any], lower: bool, common: Mapping[str, Any]) -> SiglipCaptions:
    found = read_sentencepiece(content)
    ids = {piece.text: number for number, piece in enumerate(found.pieces)}
    end = _id(ids, _name(settings.get("eos_token"), "</s>"))
    pad = _id(ids, _name(settings.get("pad_token"), "</s>"))
    tidy = _spiece_clean(lower)

    def clean(text: str) -> str:
        return found.normalized(tidy(text))

    return SiglipCaptions(found.rules(), special=found.special, clean=clean, after=(end,), pad=pad, **common)


def _from_rules(
    rules: Mapping[str, Any], settings: Mapping[str, Any], lower: bool, common: Mapping[str, Any]
) -> SiglipCaptions:
    try:
        model, kind = dict(rules["model"]), rules["model"]["type"]
        listed = list(model["vocab"]) if kind == "Unigram" else []
        ids = {str(p[0]): n for n, p in enumerate(listed)} if kind == "Unigram" else dict(model["vocab"])
        added = [dict(token) for token in rules.get("added_tokens") or ()]
        ids |= {str(token["content"]): int(token["id"]) for token in added}
        special = {str(t["content"]): int(t["id"]) for t in added if t.get("special")}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"not a tokenizer.json: {error!r}; use the file that the checkpoint ships.") from None
    if kind not in ("BPE", "Unigram"):
        raise ConfigError(f"the tokenizer is {kind}; BPE (SigLIP 2) or Unigram (SigLIP 1) is expected.")
    if model.get("dropout"):
        raise ConfigError(f"the tokenizer drops merges at random (dropout={model['dropout']}); set it to null.")
    if kind == "Unigram":
        model["vocab"] = [[APART + p[0] if p[0] in special else p[0], p[1]] for p in listed]
    before, after = _around(rules.get("post_processor"), ids)
    if before is None or after is None:
        end = _id(ids, _name(settings.get("eos_token"), "</s>" if kind == "Unigram" else "<eos>"))
        before, after = (), (end,)
    pad = _id(ids, _name(settings.get("pad_token"), "</s>" if kind == "Unigram" else "<pad>"))
    # Special tokens are taken out, so that nothing in a text can match one; content such as runs of spaces stays.
    kept = [token for token in added if not token.get("special")]
    bare = {**rules, "model": model, "added_tokens": kept, "truncation": None, "padding": None, "post_processor": None}
    clean = _spiece_clean(lower) if kind == "Unigram" else _lower_case if lower else str
    return SiglipCaptions(bare, special=special, clean=clean, before=before, after=after, pad=pad, **common)


def _spiece_clean(lower: bool) -> Callable[[str], str]:
    # The mark for a space means a space in a text too, and the code point that sets special pieces apart is unknown.
    return lambda text: canonical(text.replace(SPACE, " ").replace(APART, "\ufffd"), lower=lower)


def _lower_case(text: str) -> str:
    """Lower case character by character, as the published pipeline has it."""
    return tokenizers.normalizers.Lowercase().normalize_str(text)


def _around(post: Any, ids: Mapping[str, int]) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The ids that a post-processor's template puts before and after a text; None where there is no template."""
    steps = post.get("processors", [post]) if isinstance(post, Mapping) else []
    for step in steps:
        if not isinstance(step, Mapping) or step.get("type") != "TemplateProcessing":
            continue
        parts = list(step.get("single") or ())
        names = [part.get("SpecialToken", {}).get("id") for part in parts]
        if names.count(None) != 1:
            raise ConfigError(f"the template of the tokenizer is {parts!r}; one text with tokens around is expected.")
        text = names.index(None)
        return tuple(_id(ids, n) for n in names[:text]), tuple(_id(ids, n) for n in names[text + 1 :])
    return None, None


def _id(ids: Mapping[str, int], name: str) -> int:
    if name not in ids:
        raise ConfigError(f"the vocabulary has no {name!r}, which the tower needs; use the checkpoint's own files.")
    return ids[name]


def _name(token: Any, default: str) -> str:
    if token is None:
        return default
    if not isinstance(token, str | Mapping):
        raise ConfigError(f"tokenizer_config.json: a special token is {token!r}; expected a text.")
    return token if isinstance(token, str) else str(token.get("content", default))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
