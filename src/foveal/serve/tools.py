"""Tools in a conversation: how they are shown to a model, and how its calls are read.

The line's models that were trained on tools (Qwen2.5 and Qwen3, the language models inside the later VL ones) know this
form; the others are given the same, as they have none of their own:

    system: ... # Tools ... <tools> one JSON object a line </tools> ...
    assistant: <tool_call> {"name": ..., "arguments": ...} </tool_call>
    user: <tool_response> ... </tool_response>

The tags around calls and results are single tokens where the vocabulary has them as content (Qwen2.5 has those of
calls, Qwen3 all four), and text elsewhere. Everything between them is text: what a tool answers or is called cannot
become one of them, nor any other token that no text gives.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
TAGS = (OPEN, CLOSE, RESULT, RESULT_END)
_TAG = re.compile("(" + "|".join(TAGS) + ")")
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)

# The words that these models were trained with (Qwen2.5's chat template); other words call tools less surely.
_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Form(str):
    """Words of the form itself, in which tags are tags. Every other string is somebody's words."""


def shown(functions: Sequence[Mapping[str, Any]], system: str) -> list[str]:
    """What the system says when there are tools: its own words, then the tools."""
    lines = [json.dumps({"type": "function", "function": f}, ensure_ascii=False) for f in functions]
    return [system + "\n\n" if system else "", Form(_BEFORE), "\n" + "\n".join(lines), Form(_AFTER)]


def said(words: str, calls: Sequence[tuple[str, str]]) -> list[str]:
    """What the assistant said before: words, then calls (name, arguments). Arguments that are no JSON stay as they
    are."""
    pieces = [words]
    for name, arguments in calls:
        try:
            value = json.dumps(json.loads(arguments), ensure_ascii=False)
        except (ValueError, RecursionError):
            value = json.dumps(arguments, ensure_ascii=False)
        call = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {value}}}'
        pieces += ["\n" if any(pieces) else "", Form(f"{OPEN}\n"), call, Form(f"\n{CLOSE}")]
    return pieces


def answered(results: Sequence[str]) -> list[str]:
    """Answers of tools as the user's turn that brings them."""
    pieces: list[str] = []
    for result in results:
        pieces += [Form(("\n" if pieces else "") + f"{RESULT}\n"), result, Form(f"\n{RESULT_END}")]
    return pieces


def parts(pieces: Sequence[str], tags: frozenset[str]) -> list[dict[str, Any]]:
    """Pieces as parts of a message: the form's own tags alone where they are in `tags`, all else joined."""
    found: list[dict[str, Any]] = []
    plain: list[str] = []

    def close() -> None:
        if plain:
            found.append({"type": "text", "text": "".join(plain)})
            plain.clear()

    for piece in pieces:
        for word in _TAG.split(piece) if isinstance(piece, Form) else [piece]:
            if isinstance(piece, Form) and word in tags:
                close()
                found.append({"type": "text", "text": word, "tag": True})
            elif word:
                plain.append(word)
    close()
    return found or [{"type": "text", "text": ""}]


def split(text: str, names: frozenset[str]) -> tuple[str, list[Call]]:
    """An answer as words and calls. What looks like a call but is none, or calls no known function, stays words."""
    calls: list[Call] = []

    def take(found: re.Match[str]) -> str:
        call = _read(found[1], names)
        if call is None:
            return found[0]
        calls.append(call)
        return ""

    words = _CALL.sub(take, text)
    return (words.strip() if calls else words), calls


def _read(text: str, names: frozenset[str]) -> Call | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):  # some answer with the JSON in a string
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return Call(
        id=f"call_{secrets.token_hex(12)}", name=value["name"], arguments=json.dumps(arguments, ensure_ascii=False)
    )


def certain(text: str) -> int:
    """How many letters of an unfinished answer are words for sure, and no beginning of a call."""
    at = text.find(OPEN)
    if at >= 0:
        return at
    return len(text) - next((n for n in range(min(len(text), len(OPEN) - 1), 0, -1) if OPEN.startswith(text[-n:])), 0)
