"""Answers in a given form: JSON, a regular expression, a choice, a family's boxes, calls of tools.

A form becomes a grammar of llguidance, which says before every token which ones may follow. Whatever the model would
rather say, what it can say has the form; only the end of its tokens (`finish_reason` "length") can cut it short.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from foveal.core.errors import FovealError, InputError
from foveal.processing.det_boxes import DetBoxes
from foveal.processing.grounding import BoxStyle, TaggedBoxes
from foveal.processing.json_boxes import JsonBoxes
from foveal.processing.tokens import Tokenizer

MOST_CHARACTERS = 128 * 1024  # of a grammar
_COMPACT: Any = {"whitespace_flexible": False}


class Vocabulary:
    """A tokenizer as llguidance knows it."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[int]) -> None:
        self.size = tokenizer.vocab_size
        self.specials = frozenset(tokenizer.special_names)
        self.tokens = LLTokenizer(
            TokenizerWrapper(_Words(tokenizer, stops)), n_vocab=self.size, eos_token=sorted(stops)
        )
        self._matchers = lru_cache(maxsize=64)(self._matcher)

    def check(self, grammar: str) -> None:
        """Raises `InputError` for a grammar that cannot be used, or is too large or too complex."""
        if len(grammar) > MOST_CHARACTERS:
            raise InputError(
                f"the form of the answer takes {len(grammar):,} characters; {MOST_CHARACTERS:,} are the most."
            )
        problem = LLMatcher.validate_grammar(grammar, self.tokens)
        if problem and not problem.startswith("WARNING"):
            raise InputError(f"the form of the answer cannot be used: {_first_line(problem)}")

    def constraint(self, grammar: str) -> "Grammar":
        """A fresh constraint of one answer. Raises `InputError` as `check` does."""
        return Grammar(self._matchers(grammar).deep_copy(), self.size)

    def _matcher(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self.tokens, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"the form of the answer cannot be used: {_first_line(matcher.get_error())}")
        return matcher


class Grammar:
    """The `Constraint` of one answer; see `foveal.engine.request.Constraint`."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher, self._size = matcher, size

    @property
    def done(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self) -> np.ndarray:
        """Allowed ids as booleans [V]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._size, bitorder="little").astype(bool)

    def accept(self, token: int) -> None:
        """Takes the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise FovealError(f"the form of the answer became too complex: {_first_line(self._matcher.get_error())}")


class _Words:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[int]) -> None:
        self.eos_token_id = min(stops)
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode_text(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def json_grammar(schema: Mapping[str, Any] | None) -> str:
    """JSON of a schema; any JSON object without one. `InputError` for what is no schema."""
    try:
        wanted = {"type": "object"} if schema is None else dict(schema)
        return str(LLMatcher.grammar_from_json_schema(wanted, overrides=_COMPACT))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the JSON schema cannot be used: {_first_line(str(error))}") from None


def regex_grammar(pattern: str) -> str:
    """Text that a regular expression matches as a whole."""
    return str(LLMatcher.grammar_from_regex(pattern))


def choice_grammar(choices: Sequence[str]) -> str:
    """One of several texts."""
    return _lark("start: " + " | ".join(_quoted(c) for c in choices))


def tool_grammar(functions: Sequence[Mapping[str, Any]], specials: frozenset[str], *, several: bool) -> str:
    """One call of these functions, or several, as `foveal.serve.tools` writes them."""
    opening, closing = (n if n in specials else _quoted(n) for n in ("<tool_call>", "</tool_call>"))
    rules = []
    for number, function in enumerate(functions):
        schema = {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": function.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "x-guidance": {**_COMPACT, "item_separator": ", ", "key_separator": ": "},
        }
        rules.append(f"call{number}: %json {json.dumps(schema)}")
    names = " | ".join(f"call{number}" for number in range(len(rules)))
    repeat = r' ("\n" one)*' if several else ""
    return _lark("\n".join([f"start: one{repeat}", rf'one: {opening} "\n" ({names}) "\n" {closing}', *rules]))


def box_grammar(style: BoxStyle, labels: Sequence[str] | None, most: int, extent: tuple[int, int]) -> str:
    """From 1 to `most` boxes as a family writes them. `extent` is the far edge in the units of its numbers.

    Raises `InputError` for a family that has no boxes.
    """
    x, y = _up_to(extent[0]), _up_to(extent[1])
    if isinstance(style, JsonBoxes):
        name = {"enum": list(labels)} if labels else {"type": "string", "minLength": 1, "maxLength": 64}
        sides = [{"type": "integer", "minimum": 0, "maximum": extent[i % 2]} for i in range(4)]
        corners: dict[str, Any] = {"type": "array", "prefixItems": sides, "items": False, "minItems": 4}
        row: dict[str, Any] = {"type": "object", "properties": {"bbox_2d": corners, "label": name}}
        row |= {"required": ["bbox_2d", "label"], "additionalProperties": False}
        schema = {"type": "array", "items": row, "minItems": 1, "maxItems": most, "x-guidance": _COMPACT}
        return _lark(f'start: "```json\\n" rows "\\n```"\nrows: %json {json.dumps(schema)}')
    if not isinstance(style, TaggedBoxes):
        raise InputError("this model's family has no form of boxes; leave 'boxes' out.")
    label = " | ".join(_quoted(v) for v in labels) if labels else r"/[^<\n\[\]()|]{1,64}/"
    head = f"{style.ref[0]} label {style.ref[1]}"
    one = rf"/\({x},{y}\),\({x},{y}\)/"
    if isinstance(style, DetBoxes):
        one = rf"/\[\[{x}, {y}, {x}, {y}\]\]/"
    return _lark(f"start: box{{1,{most}}}\nbox: {head} {style.box[0]} {one} {style.box[1]}\nlabel: {label}")


def _up_to(far: int) -> str:
    """A pattern for whole numbers from 0 to `far`, without leading zeros."""
    digits, found = str(far), []
    for length in range(1, len(digits)):
        found.append("[0-9]" if length == 1 else f"[1-9][0-9]{{{length - 1}}}")
    for at, digit in enumerate(digits):
        low = 1 if at == 0 and len(digits) > 1 else 0
        if int(digit) > low:
            rest = len(digits) - at - 1
            found.append(f"{digits[:at]}[{low}-{int(digit) - 1}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    return f"({'|'.join([*found, digits])})"


def _lark(text: str) -> str:
    return str(LLMatcher.grammar_from_lark(text))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)


def _first_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().split("\n")[0])[:200]
