"""Models without files: the vocabulary of the small model inside stands in for the published one, and weights are
random. For training from nothing, and for measuring: speed and memory do not depend on the values."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.describe import families, folder_of
from foveal.processing.picture_chat import SPECIALS
from foveal.processing.processor import Processing, Processor
from foveal.processing.tiktoken import from_ranks
from foveal.processing.tokens import Tokenizer


def known_family(name: str) -> Family:
    """The family of that name; raises `ConfigError` that names the known ones."""
    known = families()
    if name not in known:
        raise ConfigError(f"no family {name!r}; known: {', '.join(known)}.")
    return known[name]


def vocabulary(family: Family, config: Any) -> tuple[Tokenizer, Any]:
    """A small vocabulary with all special tokens of a family, and `config` with its ids."""
    if family.name == "qwen_vl":
        tokenizer = _bytes()
        return tokenizer, replace(config, image_start=tokenizer.special("<img>"))
    declared = family.processing(config)
    if not isinstance(declared, Processing):
        raise ConfigError(f"family {family.name!r} takes no text.")
    return _small((*declared.chat.specials, *declared.boxes.specials)), config


def rows(tokenizer: Tokenizer) -> int:
    """Rows of the table that a vocabulary needs, in multiples of 64."""
    return -(-(max(tokenizer.special_ids) + 1) // 64) * 64


def processor_for(family: Family, config: Any, tokenizer: Tokenizer) -> Processor:
    """The processing of a family with this vocabulary. Raises `ConfigError` for one that takes no text."""
    processing = family.processing(config)
    if not isinstance(processing, Processing):
        raise ConfigError(f"family {family.name!r} takes no text.")
    return Processor(tokenizer=tokenizer, processing=processing, context_tokens=family.context(config))


def write_random(folder: Path, family: Family, size: str, *, dtype: str = "bfloat16", seed: int = 0) -> None:
    """Writes a checkpoint of a released size with random weights to `folder`, which must not exist.

    Weights are a million normal values of deviation 0.02 again and again, biases 0, norms 1.
    """
    import torch

    from foveal.families.load import DTYPES, save_folder

    tokenizer, config = vocabulary(family, family.size(size))
    if config.language.vocab < rows(tokenizer):  # of the sizes that are only for tests
        config = replace(config, language=replace(config.language, vocab=rows(tokenizer)))
    with torch.device("meta"):
        network = family.build(config)
    network = network.to(DTYPES[dtype]).to_empty(device="cpu")
    values = torch.empty(2**20).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                flat = parameter.view(-1)
                for begin in range(0, len(flat), len(values)):
                    part = flat[begin : begin + len(values)]
                    part.copy_(values[: len(part)])
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    processor = processor_for(family, config, tokenizer)
    save_folder(folder, family=family, config=config, network=network, processor=processor, generation={})


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
