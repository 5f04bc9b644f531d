"""What the verbs that run the server's machinery share: flags of engine and media, and the settings they make."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.core.errors import InputError

if TYPE_CHECKING:
    from foveal.serve.options import ServeOptions


def engine_flags(parser: argparse.ArgumentParser) -> None:
    """The model's place and how much it does at once."""
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to answer with: a folder or hub name")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; default: as in the files")
    parser.add_argument("--quantize", metavar="KIND", help="round the language model's weights: int8 or int4")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or mps; default: an accelerator if there is one")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine on a CPU")
    load = parser.add_argument_group("how much at once")
    load.add_argument("--max-model-len", type=int, metavar="N", help="tokens of prompt and answer together")
    load.add_argument("--max-num-seqs", type=int, metavar="N", help="answers in the making at once (default 32)")
    load.add_argument("--max-num-batched-tokens", type=int, metavar="N", help="tokens of a step (default 2048)")
    load.add_argument("--cache-bytes", type=int, metavar="N", help="memory for keys and values")
    load.add_argument(
        "--vision-cache-bytes", type=int, metavar="N", help="memory for pictures that were seen (default 256 MiB)"
    )
    load.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, dest="prefix_cache",
        help="keep keys and values for prompts that begin alike (default: yes)",
    )  # fmt: skip
    load.add_argument("--speculate", type=int, metavar="N", help="tokens guessed at a time from the prompt (default 0)")
    load.add_argument("--request-timeout", type=float, metavar="S", help="seconds for a request (default 600)")


def media_flags(parser: argparse.ArgumentParser) -> None:
    """What media may be, and where they may come from."""
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
    media.add_argument("--decode-timeout", type=float, metavar="S", help="seconds for a request's media (default 30)")
    media.add_argument("--decoders", type=int, metavar="N", help="processes that decode (default 2)")


_BUDGET = {
    "max_file_bytes": "file_bytes",
    "max_image_pixels": "image_px",
    "max_frames": "frames",
    "max_video_seconds": "video_s",
}
_RENAMED = {"request_timeout": "request_s", "shutdown_timeout": "shutdown_s", "decode_timeout": "decode_s"}
_SAME = (
    "model", "adapter", "dtype", "quantize", "device", "threads", "host", "port", "served_model_name", "max_model_len",
    "max_num_seqs", "max_waiting", "max_num_batched_tokens", "cache_bytes", "vision_cache_bytes", "prefix_cache",
    "speculate", "max_pixels", "max_body_bytes", "decoders",
)  # fmt: skip


def options_of(arguments: argparse.Namespace, **more: Any) -> "ServeOptions":
    """The settings that flags stand for; those that a verb does not have keep their defaults, `more` are its own."""
    from foveal.serve.options import BUDGET, ServeOptions

    flags = vars(arguments)
    given = {name: flags.get(name) for name in _SAME}
    given |= {ours: flags.get(name) for name, ours in _RENAMED.items()}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    budget = {ours: v for name, ours in _BUDGET.items() if (v := flags[name]) is not None}
    if budget:
        settings["budget"] = replace(BUDGET, **budget)
    if arguments.limit_mm_per_prompt is not None:
        settings["limit_mm_per_prompt"] = _limits(arguments.limit_mm_per_prompt)
    if arguments.allowed_local_media_path is not None:
        settings["allowed_local_media_path"] = Path(arguments.allowed_local_media_path)
    hosts = tuple(host.lower() for host in arguments.allowed_media_domains)
    return ServeOptions(**settings, allowed_media_domains=hosts, **more)


def _limits(text: str) -> dict[str, int]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f'--limit-mm-per-prompt is {text!r}; expected JSON such as \'{{"image": 4, "video": 1}}\'.')
    return value
