"""`foveal bench`: how fast a model is on this machine, phase by phase, and which limit of the machine binds."""

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli.output import NANO, size, table
from foveal.core.errors import InputError

if TYPE_CHECKING:
    from foveal.engine.bench.phases import Report

HELP = "how fast a model is on this machine, and which limit binds"
EXAMPLE = """examples:
  foveal bench                                    (the small model inside; seconds)
  foveal bench Qwen/Qwen2-VL-2B-Instruct --plot bench.png
  foveal bench qwen2_vl/2b --quantize int4        (random weights of that size: nothing is downloaded)
  foveal bench ./folder --requests 1 --requests 16 --context 512 --context 16384"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="hub name, folder, or FAMILY/SIZE for random weights")
    parser.add_argument("--dtype", help="bfloat16, float16 or float32; default: as stored")
    parser.add_argument("--device", help="cpu, cuda, mps; default: an accelerator if there is one")
    parser.add_argument("--quantize", metavar="KIND", help="round the language model's weights: int8 or int4")
    parser.add_argument("--image", type=int, default=448, metavar="PX", help="side of the square picture; default: 448")
    parser.add_argument("--prompt", type=int, default=512, metavar="TOKENS", help="length of prompts; default: 512")
    parser.add_argument(
        "--requests", action="append", type=int, metavar="N", help="decoded at once; repeatable; default: 1, 4, 8"
    )
    parser.add_argument(
        "--context", action="append", type=int, metavar="TOKENS",
        help="decode alone after so many tokens; repeatable; default: 512 to 8192; 0: not at all",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="turns of each phase; default: 3")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the result as a PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    from foveal.engine.bench.phases import BenchOptions, bench
    from foveal.engine.load import load
    from foveal.engine.model import Model

    if arguments.plot is not None and arguments.plot.suffix.lower() != ".png":
        raise InputError(f"--plot {arguments.plot} is no PNG; name a file that ends in .png.")
    given: dict[str, Any] = {}
    if arguments.requests:
        given["requests"] = tuple(arguments.requests)
    if arguments.context:
        given["contexts"] = tuple(c for c in arguments.context if c)
    options = BenchOptions(image_px=arguments.image, prompt_tokens=arguments.prompt, repeats=arguments.repeats, **given)
    if not arguments.json:
        logging.getLogger("foveal.engine.bench").setLevel(logging.INFO)
    with _folder(arguments.model, arguments.dtype) as folder:
        model = load(folder, dtype=arguments.dtype, device=arguments.device, quantize=arguments.quantize)
        if not isinstance(model, Model):
            raise InputError(f"{arguments.model} answers no questions, so there is nothing to measure.")
        report = bench(model, options, name=arguments.model or NANO)
    if arguments.plot is not None:
        from foveal.engine.bench.plot import plot

        plot(report, arguments.plot)
    print(json.dumps(report.record(), indent=2) if arguments.json else page(report))
    return 0


@contextmanager
def _folder(model: str | None, dtype: str | None) -> Iterator[str | None]:
    """The model to load: as named, or for FAMILY/SIZE a folder with random weights that is removed at the end."""
    from foveal.families.describe import families

    family, _, wanted = (model or "").partition("/")
    known = families()
    if family not in known or Path(model or "").exists():
        yield model
        return
    from foveal.families.stand_in import write_random

    known[family].size(wanted)
    with tempfile.TemporaryDirectory(prefix="foveal-bench-") as parent:
        folder = Path(parent) / "model"
        write_random(folder, known[family], wanted, dtype=dtype or "bfloat16")
        yield str(folder)


def page(report: "Report") -> str:
    """The report for people."""
    roofs = report.roofs
    rows = [("phase", "what", "time", "from", "to", "rate", "binds", "of its roof")]
    for t in report.timings:
        rows.append(
            (
                t.phase,
                t.detail,
                _time(t.seconds),
                _time(t.low),
                _time(t.high),
                f"{_rate(t.rate)} {t.unit}/s",
                t.roof or "-",
                "-" if t.share is None else f"{t.share:.0%}",
            )
        )
    return "\n".join(
        [
            f"{report.model}: {report.dtype} on {report.device}, threads: {report.threads}, torch {report.torch}",
            f"  roofs: memory {roofs.read_bytes_s / 1e9:.1f} GB/s, products {roofs.product_flop_s / 1e9:,.0f} GFLOP/s",
            f"  memory: {size(report.loaded_bytes)} after loading, {size(report.peak_bytes)} at most",
            "",
            table(rows, left=2),
        ]
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
