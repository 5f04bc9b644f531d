"""Models of the families' "tiny" size with random weights and small vocabularies: recipes run on them in minutes."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.stand_in import known_family, processor_for, rows, vocabulary
from foveal.processing.clip_tokens import BEGIN, END, WORD_END, clip_rules
from foveal.processing.pictures import PictureProcessing, PictureProcessor
from foveal.processing.tokens import BYTE_LETTERS
from foveal.train.run import Fresh

CAPTION_TOKENS = 48
"""Context of tiny text towers, whose vocabularies have single letters only."""


def tiny(
    name: str,
    *,
    seed: int = 0,
    std: float = 0.06,
    vision: Mapping[str, Any] | None = None,
    side_px: int | None = None,
    **language: Any,
) -> Fresh:
    """The tiny size of family `name` ("qwen_vl", "qwen2_vl", "clip", ...), ready to be trained.

    Args:
        seed: of the weights.
        std: their deviation; larger than usual, as narrow networks need.
        vision, side_px: changed sizes of the picture tower and side of its pictures, where there are two towers.
        language: changed sizes of the language model or the text tower.

    Raises `ConfigError` for a family that is unknown or takes no text, or whose tower has its size for good.
    """
    family = known_family(name)
    config = family.size("tiny")
    if isinstance(family.processing(config), PictureProcessing):
        towers = {
            "vision": replace(config.vision, **(vision or {})),
            "text": replace(config.text, **{"context": CAPTION_TOKENS, **language}),
        }
        config = replace(config, side_px=side_px or config.side_px, **towers)
        return Fresh(family=family, config=config, processor=_pictures(family, config), seed=seed, std=std)
    if vision is not None or side_px is not None:
        raise ConfigError(f"family {name!r}: only the sizes of families with two towers can be changed here.")
    tokenizer, config = vocabulary(family, config)
    config = replace(config, language=replace(config.language, **{"vocab": rows(tokenizer), **language}))
    processor = processor_for(family, config, tokenizer)
    return Fresh(family=family, config=config, processor=processor, seed=seed, std=std)


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
