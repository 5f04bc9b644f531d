"""Prompts with tools have the ids that the published templates give, and nobody's words become a tag."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from foveal.processing.chat import ChatML
from foveal.processing.processor import Processor
from foveal.serve import tools
from foveal.serve.conversation import conversation
from foveal.serve.options import ServeOptions
from foveal.serve.schema import ChatRequest
from tests.helpers.processing import processor
from tests.helpers.tiny_tokenizer import with_tags

PUBLISHED = Path(__file__).parents[1] / "data_files" / "published"
FAMILIES = {
    "Qwen2.5-VL-7B-Instruct": ("tokenizer_config.first_release.json", ChatML(), ("<tool_call>", "</tool_call>")),
    "Qwen3-VL-4B-Instruct": (
        "chat_template.json", ChatML(default_system=None), (*tools.TAGS, "<think>", "</think>")
    ),
}  # fmt: skip
"""Where a template with tools was published, the family's format, and the tags that are tokens of content."""

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "蓝色"]}},
    "required": ["colour"],
}
TOOLS = [
    {"type": "function", "function": {"name": "paint", "description": "Paints it.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}},
]
CALLS: list[tuple[str, dict[str, Any]]] = [("paint", {"colour": "蓝色"}), ("look", {})]
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Paint it, then look."},
    {"role": "assistant", "content": "I will."},
    {"role": "user", "content": "Now."},
    {"role": "assistant", "content": None},
    {"role": "tool", "content": "done"},
    {"role": "tool", "content": "It is 蓝色."},
    {"role": "assistant", "content": "And again."},
    {"role": "tool", "content": "done twice"},
]


def asked(*, system: bool) -> ChatRequest:
    """The conversation as a client sends it."""
    made = [{**m} for m in TALK]
    numbers = iter(range(9))
    for at, count in ((3, 2), (6, 1)):
        made[at]["tool_calls"] = [
            {"id": f"c{next(numbers)}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
            for n, a in CALLS[:count]
        ]
    for number, at in enumerate((4, 5, 7)):
        made[at]["tool_call_id"] = f"c{number}"
    start = [{"role": "system", "content": "Be kind."}] if system else []
    return ChatRequest.model_validate({"messages": [*start, *made], "tools": TOOLS})


def published(name: str, *, system: bool) -> str:
    """The same as the published template writes it; arguments are objects there, as vLLM hands them over."""
    made = [{**m} for m in TALK]
    for at, count in ((3, 2), (6, 1)):
        made[at]["tool_calls"] = [{"function": {"name": n, "arguments": a}} for n, a in CALLS[:count]]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = json.loads((PUBLISHED / name / FAMILIES[name][0]).read_text(encoding="utf-8"))["chat_template"]
    start = [{"role": "system", "content": "Be kind."}] if system else []
    program = environment.from_string(template, globals={"add_vision_id": False})
    # Templates ask for keys that a message may lack.
    messages = [{"tool_calls": None, **m, "content": m["content"] or ""} for m in (*start, *made)]
    return program.render(messages=messages, tools=TOOLS, add_generation_prompt=True)


def prompt(request: ChatRequest, own: Processor) -> list[int]:
    talk = conversation(request, ServeOptions(), own)
    return own.process(talk.messages, **talk.knobs).tokens.tolist()


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_published_template(name, system, tmp_path):
    _, chat, tags = FAMILIES[name]
    folder = with_tags(tmp_path / "vocabulary", tags)
    own = processor(folder, chat=chat)
    ids = prompt(asked(system=system), own)
    oracle = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids == oracle.encode(published(name, system=system), add_special_tokens=False).ids
    counts = {tag: ids.count(own.tokenizer.special(tag)) for tag in tags}
    assert counts["<tool_call>"] == counts["</tool_call>"] == 2 + 3  # two in the explanation
    assert counts.get("<tool_response>", 3) == 3 and counts.get("<think>", 0) == 0


def test_tags_in_what_others_say_stay_words(tmp_path):
    tags = FAMILIES["Qwen3-VL-4B-Instruct"][2]
    own = processor(with_tags(tmp_path / "vocabulary", tags), chat=ChatML(default_system=None))
    ids = {tag: own.tokenizer.special(tag) for tag in tags}

    def counted(words: str) -> dict[str, int]:
        call = {"id": words, "function": {"name": "f" + words, "arguments": json.dumps({"a": words})}}
        described = {"name": "paint", "description": words, "parameters": {"properties": {words: {"enum": [words]}}}}
        request = ChatRequest.model_validate(
            {
                "messages": [
                    {"role": "system", "content": words}, {"role": "user", "content": words},
                    {"role": "assistant", "content": words, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": words, "content": words},
                    {"role": "user", "content": [{"type": "text", "text": words}]},
                ],
                "tools": [{"type": "function", "function": described}],
            }
        )  # fmt: skip
        found = prompt(request, own)
        return {tag: found.count(number) for tag, number in ids.items()}

    assert counted("".join(tags)) == counted("x")
    assert counted("x") == {"<tool_call>": 3, "</tool_call>": 3, "<tool_response>": 1, "</tool_response>": 1} | {
        "<think>": 0, "</think>": 0,
    }  # fmt: skip


def test_without_such_tokens_all_is_one_text():
    own = processor()
    talk = conversation(asked(system=True), ServeOptions(), own)
    assert all(len(m["content"]) == 1 and m["content"][0].keys() == {"type", "text"} for m in talk.messages)
    assert talk.messages[4]["content"][0]["text"] == (
        '<tool_call>\n{"name": "paint", "arguments": {"colour": "蓝色"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    )
    assert talk.messages[5]["content"][0]["text"].startswith("<tool_response>\ndone\n</tool_response>\n<tool_resp")
