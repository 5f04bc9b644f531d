"""`foveal data`: data sets converted from one format to another, and looked through for what is wrong."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli.output import NANO, progress, table
from foveal.core.errors import InputError

if TYPE_CHECKING:
    from foveal.data.doctor import Report
    from foveal.data.repair import Repaired
    from foveal.processing.processor import Processor

HELP = "data sets: convert formats, find and mend what is wrong"
EXAMPLE = """examples:
  foveal data convert llava.json train.tar --to webdataset
  foveal data convert refcoco.jsonl refcoco-swift.jsonl --to swift
  foveal data doctor train.json --against test.json --fix clean.jsonl
  foveal data doctor train.json --max-tokens 4096 --model Qwen/Qwen2-VL-2B-Instruct

Read are JSON, JSON lines, parquet and tar with records of LLaVA, ShareGPT, Qwen-VL, qwen-vl-finetune, ms-swift,
RefCOCO's kind, captions, and OpenAI's messages. What a file is, is seen from its content, not from its name."""
_SHOWN = 3  # examples of each kind of finding


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    convert = verbs.add_parser("convert", help="write a set in another format", allow_abbrev=False)
    convert.add_argument("source", help="file, or folder of shards")
    convert.add_argument("target", help="file to write; nothing is written over")
    convert.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="messages, swift, qwen-vl, qwen-finetune, sharegpt, llava, grounding or caption; parquet or webdataset "
        "(with ms-swift's records)",
    )
    convert.add_argument("--container", metavar="KIND", help="json, jsonl, parquet or webdataset; default: as usual")
    convert.add_argument("--round", action="store_true", help="allow boxes to be rounded to whole thousandths")
    convert.add_argument("--copy", action="store_true", help="copy media beside the target instead of naming them")
    doctor = verbs.add_parser("doctor", help="find what is wrong with a set, and mend it", allow_abbrev=False)
    doctor.add_argument("source", metavar="path", help="file, or folder of shards")
    doctor.add_argument("--fix", metavar="OUT", help="write what can be kept as a new set (JSON lines of messages)")
    doctor.add_argument("--against", metavar="OTHER", help="a set, such as the test set, that must share no picture")
    doctor.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of a sample")
    doctor.add_argument(
        "--model", metavar="MODEL", help="whose tokens; default with --max-tokens: the small one inside"
    )
    doctor.add_argument("--workers", type=int, default=0, metavar="N", help="threads; default: as many as cores")
    for verb in (convert, doctor):
        verb.add_argument(
            "--format", metavar="NAME", help="format of the source, if it cannot be seen from its content"
        )
        verb.add_argument("--media", metavar="FOLDER", help="where paths of media start; default: the source's folder")
        verb.add_argument("--keep", action="append", default=[], metavar="KEY", help="carry this key along; * for all")
        verb.add_argument("--boxes", metavar="SPACE", help="units of boxes in records that do not say theirs")
        verb.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    return _convert(arguments) if arguments.verb == "convert" else _doctor(arguments)


def _convert(arguments: argparse.Namespace) -> int:
    from foveal.data.convert import convert, kind_of
    from foveal.data.doctor import files_of

    kind_of(arguments.to, arguments.container)
    source = _open(arguments, arguments.source)
    done = convert(
        source,
        arguments.target,
        to=arguments.to,
        container=arguments.container,
        rounding=arguments.round,
        copy=arguments.copy,
        progress=_bar(),
    )
    form = files_of(source)[0].form.name
    if arguments.json:
        record = {"source": arguments.source, "from": form, **vars(done), "target": str(done.target)}
        print(json.dumps(record, ensure_ascii=False, indent=2))
    else:
        print(f"read {arguments.source}: {form}, {_many(len(source), 'sample')}")
        print(f"wrote {done.target}: {done.format} in {done.container}, {_many(done.media, 'medium', 'media')}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from foveal.data.checks import Settings
    from foveal.data.doctor import Examination
    from foveal.data.repair import repair

    if arguments.max_tokens is not None and arguments.max_tokens < 1:
        raise InputError(f"--max-tokens is {arguments.max_tokens}; expected 1 or more.")
    if arguments.workers < 0:
        raise InputError(f"--workers is {arguments.workers}; expected 1 or more, or 0 for as many as cores.")
    counts = arguments.model is not None or arguments.max_tokens is not None
    processor = _processor(arguments.model) if counts else None
    settings = Settings(processor=processor, max_tokens=arguments.max_tokens, workers=arguments.workers)
    against = None if arguments.against is None else _open(arguments, arguments.against, other=True)
    examination = Examination(_open(arguments, arguments.source), settings, against)
    repaired = None
    if arguments.fix is not None:
        repaired = repair(examination, Path(arguments.fix), progress=_bar())
    else:
        for _ in examination.each(_bar()):
            pass
    report = examination.report
    if arguments.json:
        print(json.dumps(_record(report, repaired), ensure_ascii=False, indent=2))
    else:
        print(_page(report, repaired, (arguments.model or NANO) if counts else None))
    return 1 if report.errors else 0


def _open(arguments: argparse.Namespace, path: str, *, other: bool = False) -> Any:
    from foveal.data.formats import open_source

    if other:  # what is said of the one set need not hold for the other
        return open_source(path, keep=["*"])
    return open_source(path, format=arguments.format, media=arguments.media, keep=arguments.keep, space=arguments.boxes)


def _processor(model: str | None) -> "Processor":
    from foveal.families.describe import describe, folder_of
    from foveal.processing.processor import Processor

    processor = describe(folder_of(model, weights=False)).processor
    if not isinstance(processor, Processor):
        raise InputError(f"{model} takes no conversations; name a model that answers questions.")
    return processor


def _bar() -> Callable[[int, int], None] | None:
    """A progress bar, where somebody looks."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        if not done % max(1, total // 200) or done == total:
            progress(done, total, " samples")

    return tell


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def _page(report: "Report", repaired: "Repaired | None", model: str | None) -> str:
    from foveal.data.checks import KINDS

    lines = [
        f"{report.name}: {_many(report.samples, 'sample')}, {_many(report.media, 'medium', 'media')}, "
        f"{_many(report.boxes, 'box', 'boxes')}"
    ]
    if report.longest_tokens is not None:
        lines.append(f"longest: {report.longest_tokens:,} tokens for {model}")
    if not report.findings:
        lines.append("nothing found")
    else:
        rows = [("kind", "severity", "--fix", "count")]
        rows += [(kind, KINDS[kind][0], KINDS[kind][1], f"{count:,}") for kind, count in report.counts.items()]
        lines += ["", table(rows, left=3), ""]
        for kind, count in report.counts.items():
            lines.append(f"{kind}:")
            some = [f for f in report.findings if f.kind == kind][:_SHOWN]
            for finding in some:
                name = f"{finding.sample} ({finding.where})" if finding.sample else finding.where
                message = finding.message
                lines.append(f"  {message}" if name in message or finding.where in message else f"  {name}: {message}")
            if count > len(some):
                lines.append(f"  and {count - len(some):,} more (all with --json)")
        lines += ["", f"{_many(report.errors, 'error')}, {_many(len(report.findings) - report.errors, 'warning')}"]
    if repaired is not None:
        lines.append(f"wrote {repaired.written.target}: {_many(repaired.written.samples, 'sample')}")
        lines += [f"  dropped {name}: {why}" for name, why in repaired.dropped]
    return "\n".join(lines)


def _record(report: "Report", repaired: "Repaired | None") -> dict[str, Any]:
    record: dict[str, Any] = {
        "set": report.name,
        "samples": report.samples,
        "media": report.media,
        "boxes": report.boxes,
        "longest_tokens": report.longest_tokens,
        "errors": report.errors,
        "counts": report.counts,
        "findings": [{**vars(f), "severity": f.severity} for f in report.findings],
    }
    if repaired is not None:
        record["fixed"] = {
            "target": str(repaired.written.target),
            "samples": repaired.written.samples,
            "dropped": [{"sample": name, "why": why} for name, why in repaired.dropped],
        }
    return record
