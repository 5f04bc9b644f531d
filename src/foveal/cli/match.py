"""`foveal match`: which of some labels fits each picture, with a model of two towers (CLIP, SigLIP)."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from foveal.cli.output import progress, table
from foveal.core.errors import ConfigError, InputError

HELP = "find the label that fits each picture, without training (CLIP, SigLIP)"
EXAMPLE = """examples:
  foveal match openai/clip-vit-base-patch32 pets/ --labels cat dog rabbit
  foveal match openai/clip-vit-base-patch32 a.jpg b.jpg --labels cat dog --template "a photo of a {}." "a {}."
  foveal match MODEL pets/ --labels cat dog --json > found.jsonl"""

PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
"""Endings of files that are taken from a folder."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="hub name or folder of a model with two towers")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a picture, or a folder: all pictures in and below it"
    )
    parser.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="what may be in the pictures")
    parser.add_argument(
        "--template", nargs="+", metavar="TEXT", help='sentences around a label {}; default: "a photo of a {}."'
    )
    parser.add_argument("--top", type=int, default=3, metavar="N", help="labels shown for a picture (default 3)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="pictures at a time (default 32)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture, for programs")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; default: as in the files")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or mps; default: an accelerator if there is one")


def run(arguments: argparse.Namespace) -> int:
    files = pictures(arguments.images)
    if arguments.top < 1:
        raise InputError(f"--top is {arguments.top}; expected 1 or more.")
    from foveal.engine.dual import TEMPLATES, Dual
    from foveal.engine.load import load

    model = load(arguments.model, dtype=arguments.dtype, device=arguments.device)
    if not isinstance(model, Dual):
        raise ConfigError(f"{arguments.model} compares no pictures with texts; `match` needs CLIP or SigLIP.")

    def tell(done: int, total: int) -> None:
        progress(done, total, " pictures")

    long = len(files) > arguments.batch and sys.stderr.isatty()
    found = model.classify(
        [str(f) for f in files],
        arguments.labels,
        templates=arguments.template or TEMPLATES,
        batch=arguments.batch,
        progress=tell if long else None,
    )
    if arguments.json:
        for file, match in zip(files, found, strict=True):
            record = {"image": str(file), "label": match.label, "probabilities": match.probabilities}
            print(json.dumps(record, ensure_ascii=False))
        return 0
    rows = []
    for file, match in zip(files, found, strict=True):
        best = sorted(match.probabilities.items(), key=lambda pair: -pair[1])[: arguments.top]
        rows.append([str(file), *(f"{label} {share:.1%}" for label, share in best)])
    print(table(rows, left=len(rows[0])))
    return 0


def pictures(names: Sequence[str]) -> list[Path]:
    """The files that names stand for, folders opened, each file once; `InputError` for a name or folder without."""
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            if not inside:
                raise InputError(f"folder {name!r} holds no picture ({', '.join(sorted(PICTURES))}).")
            found.update(dict.fromkeys(inside))
        elif path.is_file():
            found[path] = None
        else:
            raise InputError(f"{name!r} is neither a picture nor a folder; check the path.")
    return list(found)
