"""`foveal convert`: a checkpoint in any layout that is read, written in the official one."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from foveal.cli.output import size

if TYPE_CHECKING:
    from foveal.families.convert import Converted

HELP = "write a checkpoint of another layout as an official folder"
EXAMPLE = """examples:
  foveal convert ViT-B_16.npz vit-base                                (the authors' ViT)
  foveal convert ViT-B-32.pt clip-base --files openai-clip-folder     (OpenAI's CLIP; the folder has the vocabulary)
  foveal convert deepseek-ai/deepseek-vl-1.3b-chat deepseek --dtype bfloat16

Nothing that a file holds is run. The target appears whole or not at all."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder or hub name, or a .npz, .pt, .pth, .bin or .safetensors file")
    parser.add_argument("target", help="folder to write; an earlier checkpoint there is replaced")
    parser.add_argument("--files", metavar="FOLDER", help="where the small files are that the source lacks")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; default: as stored")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    from foveal.families.convert import convert

    done = convert(arguments.source, arguments.target, files=arguments.files, dtype=arguments.dtype)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(done) | {"target": str(done.target)}, indent=2, ensure_ascii=False))
    else:
        print(_page(done))
    return 0


def _page(done: "Converted") -> str:
    weights = sum(name.endswith(".safetensors") for name in done.files)
    small = [name for name in done.files if ".safetensors" not in name]
    lines = [
        f"read {done.source}: {done.family}, {done.layout} layout, {done.tensors} tensors, {done.values:,} values",
        *(f"  {note}" for note in done.notes),
        f"wrote {done.target}: {size(done.size_bytes)} of {done.dtype} in {weights} file{'s' if weights > 1 else ''}, "
        f"{', '.join(small)}",
    ]
    return "\n".join(lines)
