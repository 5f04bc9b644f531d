"""`foveal serve`: the OpenAI-compatible server."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.core.errors import InputError

HELP = "serve a model over HTTP, in OpenAI's API"
EXAMPLE = """examples:
  foveal serve                                       (the small model, on http://127.0.0.1:8000)
  foveal serve Qwen/Qwen2-VL-2B-Instruct --host 0.0.0.0 --api-key KEY --max-model-len 8192
  foveal serve --allowed-local-media-path /data/pictures --limit-mm-per-prompt '{"image": 4, "video": 0}'"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="hub name or folder; default: the small model inside")
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to answer with: a folder or hub name")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; default: as in the files")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or mps; default: an accelerator if there is one")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine on a CPU")
    door = parser.add_argument_group("who may ask")
    door.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: this machine only")
    door.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default 8000)")
    door.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="several allowed; or in FOVEAL_API_KEY"
    )
    door.add_argument("--open-path", action="append", default=[], metavar="PATH", help="needs no key, e.g. /health")
    door.add_argument("--served-model-name", metavar="NAME", help="what clients call the model")
    load = parser.add_argument_group("how much at once")
    load.add_argument("--max-model-len", type=int, metavar="N", help="tokens of prompt and answer together")
    load.add_argument("--max-num-seqs", type=int, metavar="N", help="answers in the making at once (default 32)")
    load.add_argument("--max-waiting", type=int, metavar="N", help="requests that wait beyond them (default 64)")
    load.add_argument("--max-num-batched-tokens", type=int, metavar="N", help="tokens of a step (default 2048)")
    load.add_argument("--cache-bytes", type=int, metavar="N", help="memory for keys and values")
    load.add_argument("--speculate", type=int, metavar="N", help="tokens guessed at a time from the prompt (default 0)")
    load.add_argument("--request-timeout", type=float, metavar="S", help="seconds for a request (default 600)")
    load.add_argument("--shutdown-timeout", type=float, metavar="S", help="seconds to finish when stopped (default 30)")
    media = parser.add_argument_group("media")
    media.add_argument(
        "--allowed-media-domains",
        nargs="+",
        default=[],
        metavar="HOST",
        help="hosts to fetch media from; default: none",
    )
    media.add_argument("--allowed-local-media-path", metavar="FOLDER", help="folder for file:// media; default: none")
    media.add_argument("--limit-mm-per-prompt", metavar="JSON", help='default: {"image": 16, "video": 2}')
    media.add_argument(
        "--max-pixels", type=int, metavar="N", help="area of a processed picture: default and upper bound"
    )
    media.add_argument("--max-file-bytes", type=int, metavar="N", help="bytes of one picture or video (default 32 MiB)")
    media.add_argument("--max-image-pixels", type=int, metavar="N", help="pixels of one picture before it is opened")
    media.add_argument("--max-frames", type=int, metavar="N", help="frames taken from one video (default 256)")
    media.add_argument("--max-video-seconds", type=float, metavar="S", help="length of a video (default 3600)")
    media.add_argument("--max-body-bytes", type=int, metavar="N", help="bytes of a request (default 64 MiB)")
    media.add_argument("--decode-timeout", type=float, metavar="S", help="seconds for a request's media (default 30)")
    media.add_argument("--decoders", type=int, metavar="N", help="processes that decode (default 2)")
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))


_BUDGET = {
    "max_file_bytes": "file_bytes",
    "max_image_pixels": "image_px",
    "max_frames": "frames",
    "max_video_seconds": "video_s",
}
_RENAMED = {"request_timeout": "request_s", "shutdown_timeout": "shutdown_s", "decode_timeout": "decode_s"}
_SAME = (
    "model", "adapter", "dtype", "device", "threads", "host", "port", "served_model_name", "max_model_len",
    "max_num_seqs", "max_waiting", "max_num_batched_tokens", "cache_bytes", "speculate", "max_pixels",
    "max_body_bytes", "decoders",
)  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    try:
        from foveal.serve.options import BUDGET, ServeOptions
        from foveal.serve.server import serve
    except ModuleNotFoundError as error:
        from foveal.core.errors import MissingExtraError

        raise MissingExtraError(
            f"serving needs {error.name}; install the extra: pip install 'foveal[serve]'."
        ) from None
    import logging

    logging.getLogger().setLevel(arguments.log_level.upper())
    given = {name: getattr(arguments, name) for name in _SAME}
    given |= {ours: getattr(arguments, name) for name, ours in _RENAMED.items()}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    keys = [*arguments.api_key, *filter(None, [os.environ.pop("FOVEAL_API_KEY", None)])]
    budget = {ours: v for name, ours in _BUDGET.items() if (v := getattr(arguments, name)) is not None}
    if budget:
        settings["budget"] = replace(BUDGET, **budget)
    if arguments.limit_mm_per_prompt is not None:
        settings["limit_mm_per_prompt"] = _limits(arguments.limit_mm_per_prompt)
    if arguments.allowed_local_media_path is not None:
        settings["allowed_local_media_path"] = Path(arguments.allowed_local_media_path)
    options = ServeOptions(
        **settings,
        api_keys=tuple(keys),
        open_paths=tuple(arguments.open_path),
        allowed_media_domains=tuple(host.lower() for host in arguments.allowed_media_domains),
    )

    def ready(address: str) -> None:
        print(f"foveal: serving on {address}", flush=True)

    serve(options, ready)
    return 0


def _limits(text: str) -> dict[str, int]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f'--limit-mm-per-prompt is {text!r}; expected JSON such as \'{{"image": 4, "video": 1}}\'.')
    return value
