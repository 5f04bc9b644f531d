"""`foveal inspect`: what a checkpoint folder holds, from its small files and the headers of its weights; or which
families and released sizes there are."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli.output import NANO, size, table
from foveal.core.errors import InputError

if TYPE_CHECKING:
    from foveal.families.describe import Described, Outline
    from foveal.processing.processor import Processor
    from foveal.weights.checkpoint import Checkpoint

HELP = "what a model is: configuration, parts, memory, chat format"
EXAMPLE = """examples:
  foveal inspect                                  (the small model inside)
  foveal inspect Qwen/Qwen2-VL-2B-Instruct --json
  foveal inspect --families                       (every family, with its sizes)"""

SHOWN = 6
"""Values of a list that a page shows."""

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="hub name or folder; default: the small model inside")
    parser.add_argument("--families", action="store_true", help="list every family with its released sizes")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    if arguments.families:
        if arguments.model is not None:
            raise InputError(f"--families lists all families; drop it, or drop {arguments.model!r}.")
        known = _families()
        print(json.dumps(known, indent=2, ensure_ascii=False) if arguments.json else _families_page(known))
        return 0
    from foveal.families.describe import describe, folder_of, outline

    folder = folder_of(arguments.model, weights=False)
    record = _record(arguments.model, outline(folder) or describe(folder), _stored(folder))
    print(json.dumps(record, indent=2, ensure_ascii=False) if arguments.json else _page(record))
    return 0


def _families() -> dict[str, Any]:
    """Every family: what it reads, and the parameters of each released size by part; no weights, no torch."""
    from foveal.families.describe import families

    found = {}
    for name, family in sorted(families().items()):
        sizes = {}
        for size_name, config in family.sizes.items():
            parts = dict(family.parameters(config))
            sizes[size_name] = {**parts, "total": sum(parts.values())}
        layouts = ["official" if layout is None else layout for layout in family.layouts()]
        found[name] = {"reads": list(family.reads), "layouts": layouts, "sizes": sizes}
    return found


def _families_page(known: Mapping[str, Any]) -> str:
    lines = []
    for name, family in known.items():
        lines.append(f"{name} (model_type {', '.join(family['reads'])}; layouts {', '.join(family['layouts'])})")
        columns = list(dict.fromkeys(part for parts in family["sizes"].values() for part in parts if part != "total"))
        rows = [("size", "parameters", *columns)]
        for size_name, parts in family["sizes"].items():
            rows.append((size_name, *(f"{parts[c]:,}" if c in parts else "-" for c in ("total", *columns))))
        lines += [table(rows), ""]
    return "\n".join(lines).rstrip()


def _stored(folder: Path) -> "Checkpoint | None":
    """The headers of the folder's weights; None where it holds no weights at all, as after planning from the hub."""
    from foveal.weights.checkpoint import INDEX, SINGLE, open_checkpoint

    listed = (folder / INDEX).exists() and any(folder.glob("*.safetensors"))
    return open_checkpoint(folder) if listed or (folder / SINGLE).exists() else None


def _record(model: str | None, described: "Described | Outline", stored: "Checkpoint | None") -> dict[str, Any]:
    from foveal.families.describe import Outline

    parts = dict(described.family.parameters(described.config))
    total = sum(parts.values())
    seen = described.vision if isinstance(described, Outline) else described.processor.processing.vision
    record = {
        "model": model,
        "folder": str(described.folder),
        "family": described.family.name,
        "parameters": {**parts, "total": total},
        "memory_bytes": {dtype: total * item for dtype, item in DTYPES.items()},
        "stored": None
        if stored is None
        else {
            "dtype": stored.dtype,
            "bytes": stored.size_bytes,
            "tensors": len(stored.tensors),
            "files": len({t.file for t in stored.tensors.values()}),
        },
        "config": dataclasses.asdict(described.config),
        "processing": {name: _plain_record(value) for name, value in vars(seen).items()},
    }
    if isinstance(described, Outline):
        return {**record, "special_tokens": None}
    return {**record, "special_tokens": len(described.processor.special_ids), **_talk(described)}


def _talk(described: "Described") -> dict[str, Any]:
    """What only a model has that answers questions."""
    from foveal.engine.request import Sampling, stop_ids
    from foveal.processing.processor import Processor

    processor = described.processor
    if not isinstance(processor, Processor):
        return {}
    return {
        "context_tokens": processor.context_tokens,
        "generation": {
            "stated": dict(described.generation),
            "defaults": dataclasses.asdict(
                Sampling.from_published(described.generation, stop=processor.processing.stop_texts)
            ),
            "stop_ids": sorted(stop_ids(described.generation, processor.end_of_turn) | processor.stop_ids),
        },
        "chat": _chat(processor),
    }


def _chat(processor: "Processor") -> str:
    """A short conversation as the model reads it; each medium stands as one pad."""
    from foveal.processing.messages import ImagePart, Message, TextPart
    from foveal.processing.segments import as_text

    example = [
        Message(role="user", parts=(ImagePart(source=None), TextPart(text="What is this?"))),
        Message(role="assistant", parts=(TextPart(text="A bicycle."),)),
        Message(role="user", parts=(TextPart(text="Where is it?"),)),
    ]
    return as_text(processor.chat.render(example, boxes=lambda _: [], generate=True))


def _page(record: Mapping[str, Any]) -> str:
    parts = record["parameters"]
    rows = [("part", "parameters", *DTYPES)]
    rows += [(name, f"{count:,}", *(size(count * item) for item in DTYPES.values())) for name, count in parts.items()]
    lines = [f"{record['model'] or NANO} ({record['family']}) in {record['folder']}", "", table(rows), ""]
    if stored := record["stored"]:
        lines.append(
            f"  stored: {size(stored['bytes'])} of {stored['dtype']}, {stored['tensors']} tensors in "
            f"{stored['files']} file{'s' if stored['files'] > 1 else ''}"
        )
    else:
        lines.append("  stored: no weights in this folder")
    if record["special_tokens"] is None:
        lines.append("  vocabulary: none in this folder, so its chat format is not known")
    if "context_tokens" in record:
        lines.append(f"  context: {record['context_tokens']:,} tokens")
    for name, values in (*record["config"].items(), *record["processing"].items()):
        lines += ["", f"{name}:", *_values(values)] if isinstance(values, Mapping) else [f"  {name} = {_plain(values)}"]
    if "generation" not in record:
        return "\n".join(lines).rstrip()
    defaults = record["generation"]["defaults"] | {"stop_ids": record["generation"]["stop_ids"]}
    lines += ["", "generation (from generation_config.json):", *_values(defaults)]
    lines += ["", "chat format:", *(f"  {line}" for line in record["chat"].split("\n"))]
    return "\n".join(lines).rstrip()


def _plain_record(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _values(values: Mapping[str, Any]) -> list[str]:
    return [f"  {name} = {_plain(value)}" for name, value in values.items()]


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        shown = ", ".join(map(_plain, value[:SHOWN])) or "none"
        return shown if len(value) <= SHOWN else f"{len(value)}: {shown}, ..."
    return "none" if value is None else str(value)
