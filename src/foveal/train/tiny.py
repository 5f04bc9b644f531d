"""Models of the families' "tiny" size with random weights and small vocabularies: recipes run on them in minutes."""

import base64
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.describe import families, folder_of
from foveal.processing.clip_tokens import BEGIN, END, WORD_END, clip_rules
from foveal.processing.picture_chat import SPECIALS
from foveal.processing.pictures import PictureProcessing, PictureProcessor
from foveal.processing.processor import Processing, Processor
from foveal.processing.tiktoken import from_ranks
from foveal.processing.tokens import BYTE_LETTERS, Tokenizer
from foveal.train.run import Fresh

CAPTION_TOKENS = 48
"""Context of tiny text towers, whose vocabularies have single letters only."""


def tiny(name: str, *, seed: int = 0, std: float = 0.06, **language: Any) -> Fresh:
    """The tiny size of family `name` ("qwen_vl", "qwen2_vl", "clip", ...), ready to be trained.

    Args:
        seed: of the weights.
        std: their deviation; larger than usual, as narrow networks need.
        language: changed sizes of the language model.

    Raises `ConfigError` for a family that is unknown or takes no text.
    """
    known = families()
    if name not in known:
        raise ConfigError(f"no family {name!r}; known: {', '.join(known)}.")
    family = known[name]
    config = family.size("tiny")
    if isinstance(family.processing(config), PictureProcessing):
        config = replace(config, text=replace(config.text, context=CAPTION_TOKENS, **language))
        return Fresh(family=family, config=config, processor=_pictures(family, config), seed=seed, std=std)
    if name == "qwen_vl":
        tokenizer = _bytes()
        config = replace(config, image_start=tokenizer.special("<img>"))
    else:
        declared = family.processing(config)
        if not isinstance(declared, Processing):
            raise ConfigError(f"family {name!r} takes no text.")
        tokenizer = _small((*declared.chat.specials, *declared.boxes.specials))
    rows = -(-(max(tokenizer.special_ids) + 1) // 64) * 64
    config = replace(config, language=replace(config.language, **{"vocab": rows, **language}))
    processing = family.processing(config)
    if not isinstance(processing, Processing):
        raise ConfigError(f"family {name!r} takes no text.")
    processor = Processor(tokenizer=tokenizer, processing=processing, context_tokens=family.context(config))
    return Fresh(family=family, config=config, processor=processor, seed=seed, std=std)


def _bytes() -> Tokenizer:
    """Qwen-VL's special tokens after the 256 single bytes."""
    ranks = "".join(f"{base64.b64encode(bytes([n])).decode()} {n}\n" for n in range(256))
    settings = {"tokenizer_class": "QWenTokenizer", "model_max_length": 8192}
    return from_ranks(
        ranks, SPECIALS, files={"qwen.tiktoken": ranks, "tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}
    )


def _small(specials: tuple[str, ...]) -> Tokenizer:
    """The vocabulary of the shipped model with these special tokens beside its own."""
    rules = json.loads((folder_of(None) / "tokenizer.json").read_text(encoding="utf-8"))
    there = {token["content"] for token in rules["added_tokens"]}
    number = len(rules["model"]["vocab"]) + len(there)
    for name in dict.fromkeys(specials):
        if name not in there:
            rules["added_tokens"].append({**rules["added_tokens"][0], "content": name, "id": number})
            number += 1
    return Tokenizer(json.dumps(rules, ensure_ascii=False))


def _pictures(family: Family, config: Any) -> PictureProcessor:
    """The processor of a family with two towers and a vocabulary of letters, read from files as a release's is."""
    declared = family.processing(config)
    if not isinstance(declared, PictureProcessing) or declared.captions is None:
        raise ConfigError(f"family {family.name!r} has no text tower.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, value in declared.vision.files().items():
            (folder / file).write_text(json.dumps(value), encoding="utf-8")
        rules = _clip_letters() if family.name == "clip" else _siglip_letters()
        (folder / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
        return PictureProcessor.from_folder(folder, declared)


def _clip_letters() -> dict[str, Any]:
    letters = [*BYTE_LETTERS, *(c + WORD_END for c in BYTE_LETTERS), BEGIN, END]
    return clip_rules({letter: number for number, letter in enumerate(letters)}, [])


def _siglip_letters() -> dict[str, Any]:
    names = ["<pad>", "<eos>", "<unk>", *map(chr, range(32, 127))]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": name, **special} for n, name in enumerate(names[:2])],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": [],
        },
    }
