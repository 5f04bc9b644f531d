"""Finding the family of a checkpoint, and what a folder says of itself before any weight is read. No torch."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, neighbours
from foveal.families.base import Family
from foveal.processing.pictures import PictureProcessing, PictureProcessor
from foveal.processing.processor import Processor
from foveal.weights.hub import locate


def folder_of(model: str | Path | None, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: a checkpoint folder, a hub name, or None for the small model inside the package.

    Without `weights` only the small files of a hub model are fetched.
    """
    if model is None:
        return Path(str(resources.files("foveal") / "nano"))
    return locate(model, revision=revision, weights=weights)


@cache
def families() -> Mapping[str, Family]:
    """All families by name: the FAMILY of the module beside each name map in `foveal.families`, and entry
    points of the group "foveal.families" from other packages."""
    found: dict[str, Family] = {}
    for path in sorted((resources.files("foveal.families") / "maps").iterdir(), key=lambda p: p.name):
        name, _, kind = path.name.partition(".")
        if kind == "map":
            found[name] = importlib.import_module(f"foveal.families.{name}").FAMILY
    for point in metadata.entry_points(group="foveal.families"):
        family = point.load()
        if not isinstance(family, Family):
            raise ConfigError(f"entry point {point.name!r} gives a {type(family).__name__}, expected a Family.")
        if family.name in found:
            raise ConfigError(f"entry point {point.name!r} declares family {family.name!r}, which exists; rename it.")
        found[family.name] = family
    return found


def family_of(published: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family that answers to a published configuration's `model_type`."""
    kind = published.get("model_type")
    known = {name: family for family in families().values() for name in family.reads}
    if not isinstance(kind, str) or kind not in known:
        if kind is None:
            raise ConfigError(f"{where} has no 'model_type'; known: {', '.join(sorted(known))}.")
        raise ConfigError(f"{where}: unknown model_type {kind!r}; {neighbours(str(kind), known)}")
    return known[kind]


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a checkpoint folder says of itself before any weight is read.

    `processor` takes conversations, or for families that hold none, single pictures.
    """

    folder: Path
    family: Family
    config: Any
    processor: Processor | PictureProcessor
    generation: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What config.json alone says, and how media are seen, as far as the folder's files tell."""

    folder: Path
    family: Family
    config: Any
    vision: Any
    generation: Mapping[str, Any]


VOCABULARIES = ("tokenizer.json", "qwen.tiktoken", "vocab.json", "spiece.model")
"""Files of which a model that reads text has at least one."""


def outline(folder: Path) -> Outline | None:
    """What can be said of a folder without a vocabulary, such as a published configuration; None where one is there
    or none is needed."""
    published = read_json(folder / "config.json")
    family = family_of(published, str(folder / "config.json"))
    config = family.from_published(published)
    declared = family.processing(config)
    silent = isinstance(declared, PictureProcessing) and declared.captions is None
    if silent or any((folder / name).exists() for name in VOCABULARIES):
        return None
    stated = any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
    return Outline(
        folder=folder,
        family=family,
        config=config,
        vision=declared.vision.read(folder) if stated else declared.vision,
        generation=_generation(folder),
    )


def _generation(folder: Path) -> Mapping[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def describe(folder: Path) -> Described:
    """Reads configuration, tokenizer and processing of a checkpoint folder; no weights."""
    published = read_json(folder / "config.json")
    family = family_of(published, str(folder / "config.json"))
    config = family.from_published(published)
    declared = family.processing(config)
    processor: Processor | PictureProcessor
    if isinstance(declared, PictureProcessing):
        processor = PictureProcessor.from_folder(folder, declared)
    else:
        processor = Processor.from_folder(folder, declared, context_tokens=family.context(config))
    _check_ids(published, processor)
    return Described(folder=folder, family=family, config=config, processor=processor, generation=_generation(folder))


def _check_ids(published: Mapping[str, Any], processor: Processor | PictureProcessor) -> None:
    """config.json and tokenizer must agree on the ids of the vision tokens."""
    for key, wanted in processor.published_ids().items():
        stated = published.get(key, wanted)
        if key.endswith("token_id") and key.startswith(("image", "video", "vision")) and stated != wanted:
            raise ConfigError(
                f"config.json says {key} = {stated}, the tokenizer says {wanted}; "
                "the files come from different models: take both from one."
            )
