"""`foveal run`: a file of requests in OpenAI's batch format, answered without a server."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.cli.output import progress
from foveal.cli.serving import engine_flags, media_flags, options_of
from foveal.core.errors import MissingExtraError

if TYPE_CHECKING:
    from foveal.serve.batch import Counts

HELP = "answer a file of requests (OpenAI's batch format); a stopped run goes on where it was"
EXAMPLE = """examples:
  foveal run batch.jsonl --output answers.jsonl                   (the small model)
  foveal run batch.jsonl --model Qwen/Qwen2-VL-2B-Instruct --output answers.jsonl --max-num-seqs 8
  foveal run batch.jsonl --output answers.jsonl --allowed-local-media-path /data/pictures"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("batch", metavar="FILE", help="one request a line: custom_id, method, url, body")
    parser.add_argument(
        "--output", "-o", required=True, metavar="FILE", help="where answers go; kept ones are not redone"
    )
    parser.add_argument("--model", help="hub name or folder; default: the small model inside")
    engine_flags(parser)
    media_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        from foveal.serve.batch import run_batch
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"batches need {error.name}; install the extra: pip install 'foveal[serve]'.") from None
    seen = sys.stderr.isatty()

    def tell(counts: "Counts") -> None:
        if seen:
            progress(counts.done, counts.total, f", {counts.wrong} with errors", last="")

    target = Path(arguments.output)
    try:
        counts = run_batch(options_of(arguments), Path(arguments.batch), target, tell)
    except KeyboardInterrupt:
        print(f"\nfoveal: stopped; the same command goes on where {target} ends", file=sys.stderr)
        return 130
    print(
        ("\n" if seen else "") + f"foveal: {counts.done} answers in {target}, {counts.wrong} with errors",
        file=sys.stderr,
    )
    return 1 if counts.wrong else 0
