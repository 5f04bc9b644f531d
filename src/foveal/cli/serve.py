"""`foveal serve`: the OpenAI-compatible server."""

import argparse
import os
import shlex

from foveal.cli.serving import engine_flags, media_flags, options_of
from foveal.core.errors import MissingExtraError

HELP = "serve a model over HTTP, in OpenAI's API"
EXAMPLE = """examples:
  foveal serve                                       (the small model, on http://127.0.0.1:8000)
  foveal serve Qwen/Qwen2-VL-2B-Instruct --host 0.0.0.0 --api-key KEY --max-model-len 8192
  foveal serve --allowed-local-media-path /data/pictures --limit-mm-per-prompt '{"image": 4, "video": 0}'"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="hub name or folder; default: the small model inside")
    engine_flags(parser)
    door = parser.add_argument_group("who may ask")
    door.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: this machine only")
    door.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default 8000)")
    door.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="several allowed; or in FOVEAL_API_KEY"
    )
    door.add_argument("--open-path", action="append", default=[], metavar="PATH", help="needs no key, e.g. /health")
    door.add_argument("--served-model-name", metavar="NAME", help="what clients call the model")
    door.add_argument("--max-waiting", type=int, metavar="N", help="requests that wait for a place (default 64)")
    door.add_argument("--max-body-bytes", type=int, metavar="N", help="bytes of a request (default 64 MiB)")
    door.add_argument("--shutdown-timeout", type=float, metavar="S", help="seconds to finish when stopped (default 30)")
    media_flags(parser)
    parser.add_argument(
        "--engine",
        default="foveal",
        choices=("foveal", "vllm"),
        help="vllm: check the checkpoint, print vLLM's command with the same limits, and become it",
    )
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))


def run(arguments: argparse.Namespace) -> int:
    try:
        from foveal.serve.server import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving needs {error.name}; install the extra: pip install 'foveal[serve]'."
        ) from None
    import logging

    logging.getLogger().setLevel(arguments.log_level.upper())
    keys = [*arguments.api_key, *filter(None, [os.environ.pop("FOVEAL_API_KEY", None)])]
    options = options_of(arguments, api_keys=tuple(keys), open_paths=tuple(arguments.open_path))
    if arguments.engine == "vllm":
        from foveal.serve import handover

        plan = handover.handover(options)
        print(" ".join([*(f"{name}=..." for name in plan.environment), shlex.join(plan.command)]), flush=True)
        for limit in plan.lost:
            print(f"foveal: not with vLLM: {limit}", flush=True)
        handover.run(plan)

    def ready(address: str) -> None:
        print(f"foveal: serving on {address}", flush=True)

    serve(options, ready)
    return 0
