"""`foveal plan`: tokens and memory of a request, and the size of pictures that fits, before any weight is read."""

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from foveal.cli.output import NANO, size, table
from foveal.core.errors import InputError

if TYPE_CHECKING:
    from foveal.core.packed import Medium
    from foveal.families.plan import Plan, Planner
    from foveal.processing.intake import VideoShape

HELP = "tokens and memory of a request, before any weight is read"
EXAMPLE = """examples:
  foveal plan Qwen/Qwen2-VL-2B-Instruct --image 4032x3024
  foveal plan Qwen/Qwen2-VL-7B-Instruct --image 1280x720 --image 1280x720 --memory 24
  foveal plan --video 1920x1080@60 --fps 1 --json       (a minute of video, for the small model inside)"""

_IMAGE = re.compile(r"([1-9][0-9]{0,6})x([1-9][0-9]{0,6})")
_VIDEO = re.compile(r"([1-9][0-9]{0,6})x([1-9][0-9]{0,6})@([0-9]+(?:\.[0-9]+)?)(?::([0-9]+(?:\.[0-9]+)?))?")
GIB = 1024**3


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="hub name or folder; default: the small model inside")
    parser.add_argument("--image", "-i", action="append", default=[], metavar="WxH", help="size in pixels; repeatable")
    parser.add_argument(
        "--video", action="append", default=[], metavar="WxH@SECONDS[:FPS]", help="of 30 frames a second by default"
    )
    parser.add_argument("--text", type=int, default=0, metavar="TOKENS", help="tokens of text, chat format included")
    parser.add_argument("--answer", type=int, default=512, metavar="TOKENS", help="longest answer (default 512)")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; default: as config.json says")
    parser.add_argument("--memory", type=float, metavar="GIB", help="find the max_pixels that fits into this memory")
    parser.add_argument("--min-pixels", type=int, metavar="N", help="enlarge smaller pictures to this area")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="shrink larger pictures to this area")
    parser.add_argument("--fps", type=float, metavar="F", help="frames a second taken from a video")
    parser.add_argument("--nframes", type=int, metavar="N", help="frames taken from a video, instead of --fps")
    parser.add_argument("--max-frames", type=int, metavar="N", help="most frames taken from a video")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    from foveal.families.describe import folder_of
    from foveal.families.plan import Planner, Request
    from foveal.processing.intake import Knobs

    if arguments.memory is not None and not 0 < arguments.memory < float("inf"):
        raise InputError(f"--memory is {arguments.memory}; expected GiB, above 0.")
    knobs = {name: getattr(arguments, name) for name in ("min_pixels", "max_pixels", "fps", "nframes", "max_frames")}
    request = Request(
        images=[_image(text) for text in arguments.image],
        videos=[_video(text) for text in arguments.video],
        text_tokens=arguments.text,
        answer_tokens=arguments.answer,
        knobs=Knobs(**knobs),
    )
    planner = Planner(folder_of(arguments.model, weights=False), dtype=arguments.dtype)
    plan = planner.plan(request)
    memory = None if arguments.memory is None else int(arguments.memory * GIB)
    searched = bool(plan.media) and (memory is not None or not plan.fits_context)
    fit = planner.fit(request, memory_bytes=memory) if searched else None
    if arguments.json:
        print(json.dumps(_record(arguments.model, planner, plan, memory, fit if searched else ()), indent=2))
        return 0
    print(_page(arguments.model, planner, plan))
    if searched:
        print(_advice(plan, memory, fit))
    return 0


def _image(text: str) -> tuple[int, int]:
    if not (match := _IMAGE.fullmatch(text)):
        raise InputError(f"--image {text}: expected width x height in pixels, such as 4032x3024.")
    return int(match[1]), int(match[2])


def _video(text: str) -> "VideoShape":
    from foveal.processing.intake import VideoShape

    if not (match := _VIDEO.fullmatch(text)) or not float(match[3]) or not float(match[4] or 30):
        raise InputError(f"--video {text}: expected WxH@SECONDS or WxH@SECONDS:FPS, such as 1920x1080@60.")
    return VideoShape(width=int(match[1]), height=int(match[2]), seconds=float(match[3]), fps=float(match[4] or 30))


def _page(model: str | None, planner: "Planner", plan: "Plan") -> str:
    rows = [("medium", "model sees", "tokens")]
    for m in plan.media:
        width, height = m.view.processed
        frames = f", {len(m.times_s)} frames" if m.kind == "video" else ""
        rows.append((f"{m.kind} {_origin(m)}", f"{width} x {height}{frames}", f"{m.tokens:,}"))
    total = plan.prompt_tokens + plan.answer_tokens
    room = "fits" if plan.fits_context else f"does not fit: {total - plan.context_tokens:,} tokens too many"
    markers = plan.marker_tokens
    text = plan.prompt_tokens - plan.visual_tokens - markers
    costs = [
        ("prompt", f"{plan.prompt_tokens:,} tokens", f"{plan.visual_tokens:,} visual, {markers} markers, {text} text"),
        ("context", f"{plan.context_tokens:,} tokens", f"with an answer of {plan.answer_tokens:,}: {room}"),
        ("weights", size(plan.weights_bytes), planner.dtype),
        ("patches", size(plan.patches_bytes), "pixel values of all media"),
        ("prefill", size(plan.prefill_bytes), "widest intermediate results"),
        ("cache", size(plan.cache_bytes), "keys and values at the end of the answer"),
        ("peak", size(plan.peak_bytes), "most that is held at once; torch itself comes on top"),
    ]
    widths = max(len(c[1]) for c in costs)
    lines = [f"{model or NANO} ({planner.family.name})", ""]
    if plan.media:
        lines += [table(rows), ""]
    lines += [f"  {name:<8} {value.rjust(widths)}  {note}" for name, value, note in costs]
    return "\n".join(lines)


def _origin(medium: "Medium") -> str:
    width, height = medium.view.original
    length = medium.source.rpartition(", ")[2]
    return f"{width} x {height}" + (f", {length}" if medium.kind == "video" else "")


def _advice(plan: "Plan", memory: int | None, fit: "tuple[int, Plan] | None") -> str:
    bounds = "the context" if memory is None else f"{memory / GIB:g} GiB and the context"
    if fit is None:
        why = ""
        if memory is not None and plan.weights_bytes > memory:
            why = f": the weights alone take {size(plan.weights_bytes)}"
        return f"\n  No max_pixels fits {bounds}{why}. Take fewer media or frames, a shorter answer, or another model."
    max_px, smaller = fit
    if smaller.prompt_tokens == plan.prompt_tokens:
        return f"\n  It fits {bounds} as it is."
    return (
        f"\n  --max-pixels {max_px} is the largest that fits {bounds}: "
        f"{smaller.prompt_tokens:,} tokens, {size(smaller.peak_bytes)}."
    )


def _record(model: str | None, planner: "Planner", plan: "Plan", memory: int | None, fit: Any) -> dict[str, Any]:
    """The plan for programs. `fit` is () where nothing was searched."""
    record: dict[str, Any] = {
        "model": model,
        "family": planner.family.name,
        "dtype": planner.dtype,
        "media": [
            {
                "kind": m.kind,
                "original_size": list(m.view.original),
                "processed_size": list(m.view.processed),
                "frames": len(m.times_s) if m.kind == "video" else 1,
                "grid": list(m.grid),
                "tokens": m.tokens,
            }
            for m in plan.media
        ],
        "prompt_tokens": plan.prompt_tokens,
        "visual_tokens": plan.visual_tokens,
        "answer_tokens": plan.answer_tokens,
        "context_tokens": plan.context_tokens,
        "fits_context": plan.fits_context,
        "weights_bytes": plan.weights_bytes,
        "patches_bytes": plan.patches_bytes,
        "prefill_bytes": plan.prefill_bytes,
        "cache_bytes": plan.cache_bytes,
        "peak_bytes": plan.peak_bytes,
    }
    if memory is not None:
        record["memory_bytes"] = memory
    if fit != ():
        found = None
        if fit is not None:
            found = {"max_pixels": fit[0], "prompt_tokens": fit[1].prompt_tokens, "peak_bytes": fit[1].peak_bytes}
        record["fit"] = found
    return record
