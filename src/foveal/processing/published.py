"""The processing files of a published folder: read into settings, and written for a model of our own.

    tokenizer.json, tokenizer_config.json      vocabulary, names of special tokens
    preprocessor_config.json                   sizes and colours of images   (processor_config.json since 5.0)
    video_preprocessor_config.json             limits of video frames, where there is one
    chat_template.jinja | chat_template.json   chat template, else the one in tokenizer_config.json

A setting that would change results and is not supported is an error; a field that changes nothing is passed over.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.core.config import read_json
from foveal.core.errors import ConfigError
from foveal.processing.intake import Vision
from foveal.processing.tokens import Tokenizer

TEXT_FILES = (
    "tokenizer.json",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""Files that processing reads, and that `Processor.save` writes back unchanged."""

_PLAIN_TEXT = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "split_special_tokens",
    "clean_up_tokenization_spaces",
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a folder says about processing."""

    tokenizer: Tokenizer
    template: str | None
    variables: Mapping[str, Any]
    files: Mapping[str, str]


def read_tokenizer(folder: Path, *, allow: Collection[str] = (), needed: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.json`, with the added tokens that `tokenizer_config.json` lists.

    Args:
        allow: settings of tokenizer_config.json that may be on because the family's chat format does what they ask
            for, such as "add_bos_token".
        needed: special tokens that get the next free ids, in this order, where the files do not have them.

    Raises `ConfigError` when a file is missing or damaged, or asks for something that is not supported.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    for key in _PLAIN_TEXT:
        if settings.get(key) and key not in allow:
            raise ConfigError(f"{path}: {key}={settings[key]!r} is not supported; set it to false.")
    try:
        listed = dict(settings.get("added_tokens_decoder") or {}).items()
        added = [{"content": token["content"], **token, "id": int(number)} for number, token in listed]
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: added_tokens_decoder cannot be read: {error!r}.") from None
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", added=added)
    new = [name for name in needed if name not in tokenizer.special_names]
    if not new:
        return tokenizer
    free = tokenizer.vocab_size
    added += [{"content": name, "id": free + i, "special": True} for i, name in enumerate(new)]
    return Tokenizer.from_file(folder / "tokenizer.json", added=added)


def read_folder(folder: Path, tokenizer: Callable[[Path], Tokenizer] = read_tokenizer) -> Published:
    """Reads vocabulary and chat template of `folder`; `tokenizer` is how the family reads its vocabulary.

    Raises:
        ConfigError: a file is missing or damaged, or it asks for something that is not supported.
    """
    files = {name: _text(folder / name) for name in TEXT_FILES if (folder / name).is_file()}
    settings = _json(folder, "tokenizer_config.json", files) or {}
    variables = {k: _name(v) for k, v in settings.items() if k.endswith("_token") and isinstance(v, str | Mapping)}
    return Published(
        tokenizer=tokenizer(folder), files=files, template=_template(folder, settings, files), variables=variables,
    )  # fmt: skip


def write_files(
    tokenizer: Tokenizer, vision: Vision, template: str | None, end: str, context_tokens: int | None
) -> dict[str, str]:
    """The files of a model of our own, in the published layout; `read_folder` gives the same settings back.

    `template` is the chat template, `end` the token that ends a turn.
    """
    added = tokenizer.added
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(t["id"]): {f: t.get(f, False) for f in fields} for t in added},
        "additional_special_tokens": [t["content"] for t in added if t.get("special")],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "errors": "replace",
        "model_max_length": context_tokens,
        "pad_token": "<|endoftext|>" if "<|endoftext|>" in tokenizer.special_names else end,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if context_tokens is None:
        del settings["model_max_length"]
    written: dict[str, dict[str, Any]] = {"tokenizer_config.json": settings, **vision.files()}
    if template is not None:
        written["chat_template.json"] = {"chat_template": template}
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in written.items()}
    return {**texts, **tokenizer.files}


def _template(folder: Path, settings: Mapping[str, Any], files: Mapping[str, str]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"]
    own = _json(folder, "chat_template.json", files)
    template = (own or settings).get("chat_template")
    if isinstance(template, list):  # several templates by name
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}.get("default")
    if template is not None and not isinstance(template, str):
        raise ConfigError(f"{folder}: the chat template is a {type(template).__name__}, expected text.")
    return template


def _name(token: Any) -> str:
    return token if isinstance(token, str) else str(token.get("content", ""))


def _json(folder: Path, name: str, files: Mapping[str, str]) -> dict[str, Any] | None:
    return read_json(folder / name) if name in files else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
