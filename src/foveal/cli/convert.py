"""`foveal convert`: a checkpoint in any layout that is read, written in the official one."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from foveal.cli.output import size
from foveal.core.errors import InputError, neighbours

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foveal.core.packed import Packed
    from foveal.families.convert import Converted, Quantize
    from foveal.processing.processor import Processor
    from foveal.train.merge import Merged

CALIBRATION_TALKS = 128
"""Conversations of a calibration file that are looked at; more change little and cost time."""
HELP = "write a checkpoint of another layout, or one with an adapter merged in, as an official folder"
EXAMPLE = """examples:
  foveal convert ViT-B_16.npz vit-base                                (the authors' ViT)
  foveal convert ViT-B-32.pt clip-base --files openai-clip-folder     (OpenAI's CLIP; the folder has the vocabulary)
  foveal convert deepseek-ai/deepseek-vl-1.3b-chat deepseek --dtype bfloat16
  foveal convert --quantize int4 Qwen/Qwen2-VL-2B-Instruct small          (a quarter of the bytes)
  foveal convert --quantize int4 --method awq --calibration talks.jsonl Qwen/Qwen2-VL-2B-Instruct small
  foveal convert --merge adapter Qwen/Qwen2-VL-2B-Instruct tuned             (LoRA; the result is proved equal)

Nothing that a file holds is run. The target appears whole or not at all."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder or hub name, or a .npz, .pt, .pth, .bin or .safetensors file")
    parser.add_argument("target", help="folder to write; an earlier checkpoint there is replaced")
    parser.add_argument("--files", metavar="FOLDER", help="where the small files are that the source lacks")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; default: as stored")
    parser.add_argument("--quantize", metavar="KIND", help="round the language model's weights: int8 or int4")
    parser.add_argument("--parts", metavar="PART,...", help="with --quantize: language (default), vision, adapter")
    parser.add_argument("--group", type=int, metavar="N", help="with --quantize: weights that share a scale")
    parser.add_argument("--method", default=None, help="with --quantize: plain (default), or awq, which looks at talks")
    parser.add_argument("--calibration", metavar="FILE", help="with --method awq: conversations, as for training")
    parser.add_argument(
        "--merge", metavar="ADAPTER", help="fold this LoRA adapter (a folder or hub name) into the model"
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="SHARE", help="with --merge: largest difference; default: 1e-5 in float32"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    if arguments.merge is not None:
        return _merge(arguments)
    if arguments.tolerance is not None:
        raise InputError("--tolerance is for --merge; drop it, or name the adapter.")
    from foveal.families.convert import convert

    done = convert(
        arguments.source,
        arguments.target,
        files=arguments.files,
        dtype=arguments.dtype,
        quantize=_rounding(arguments),
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(done) | {"target": str(done.target)}, indent=2, ensure_ascii=False))
    else:
        print(_page(done))
    return 0


def _rounding(arguments: argparse.Namespace) -> "Quantize | None":
    """What rounds the weights on the way, as the options say."""
    from foveal.families.quantize import parsed

    how = parsed(arguments.quantize, arguments.parts, arguments.group)
    if how is None:
        if arguments.method is not None or arguments.calibration is not None:
            raise InputError("--method and --calibration belong to --quantize; add --quantize int4 or int8.")
        return None
    if arguments.method not in (None, "plain", "awq"):
        raise InputError(f"--method is {arguments.method!r}; {neighbours(arguments.method, ('plain', 'awq'))}")
    if (arguments.method == "awq") != (arguments.calibration is not None):
        raise InputError("--method awq and --calibration FILE belong together: the method looks at conversations.")
    from foveal.families.quantized import rounding

    if arguments.calibration is None:
        return rounding(how)
    from foveal.data.formats import open_source
    from foveal.data.sample import messages_for

    samples = open_source(arguments.calibration)

    def talks(processor: "Processor") -> "Iterator[Packed]":
        for number in range(min(len(samples), CALIBRATION_TALKS)):
            yield processor.process(messages_for(samples[number], processor.processing.chat), generate=False)

    return rounding(how, talks)


def _merge(arguments: argparse.Namespace) -> int:
    if arguments.quantize is not None:
        raise InputError("--merge and --quantize are two steps; merge first, then quantize what that wrote.")
    if arguments.files is not None:
        raise InputError("--merge takes a model that foveal opens, so --files has no use; convert it first.")
    from foveal.train.merge import merge_adapter

    done = merge_adapter(
        arguments.source, arguments.merge, arguments.target, dtype=arguments.dtype, tolerance=arguments.tolerance
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(done) | {"target": str(done.target)}, indent=2, ensure_ascii=False))
    else:
        print(_proof(done))
    return 0


def _proof(done: "Merged") -> str:
    return "\n".join(
        [
            f"merged {done.adapter} into {done.layers} layers of {done.source}",
            f"  compared {done.values:,} values of {done.samples} samples, the largest {done.largest:.3g}; "
            f"the adapter moves them by up to {done.moved * done.largest:.3g}",
            f"  live and merged in float32: apart by {done.difference * done.largest:.1e} "
            f"({done.difference:.1e} of the largest)",
            f"  live and written as {done.dtype}: apart by {done.stored * done.largest:.1e} "
            f"({done.stored:.1e} of the largest, {done.tolerance:.0e} allowed)",
            f"wrote {done.target}",
        ]
    )


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
