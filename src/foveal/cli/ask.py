"""`foveal ask`: one question, or a conversation when no question is given."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.core.errors import InputError

if TYPE_CHECKING:
    from foveal.engine.answer import Answer
    from foveal.engine.model import Model

HELP = "ask a model about images and videos"
EXAMPLE = """examples:
  foveal ask --image street.jpg "Find every bicycle." --draw found.png
  foveal ask --model Qwen/Qwen2-VL-2B-Instruct --video clip.mp4 --fps 1 "What happens?"
  foveal ask --image a.png --image b.png          (a conversation: one line a turn)"""

PROCESSING = ("min_pixels", "max_pixels", "fps", "nframes", "max_frames")
SAMPLING = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", nargs="?", help="what to ask; without it, every line of input is a turn")
    parser.add_argument("--model", "-m", metavar="NAME", help="hub name or folder; default: the small model inside")
    parser.add_argument("--quantize", metavar="KIND", help="round the language model's weights: int8 or int4")
    parser.add_argument("--quantize-parts", metavar="PART,...", help="parts to round: language, vision, adapter")
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to answer with: a folder or hub name")
    parser.add_argument("--image", "-i", action="append", default=[], metavar="FILE", help="can be given several times")
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="can be given several times")
    parser.add_argument("--system", metavar="TEXT", help="what the system says instead of the default")
    parser.add_argument("--draw", metavar="FILE", help="write the image with the answer's boxes")
    parser.add_argument("--json", action="store_true", help="print one JSON object an answer, for programs")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; default: as in the files")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or mps; default: an accelerator if there is one")
    seen = parser.add_argument_group("what the model sees")
    seen.add_argument("--min-pixels", type=int, metavar="N", help="enlarge smaller pictures to this area")
    seen.add_argument("--max-pixels", type=int, metavar="N", help="shrink larger pictures to this area")
    seen.add_argument("--fps", type=float, metavar="F", help="frames a second taken from a video (default 2)")
    seen.add_argument("--nframes", type=int, metavar="N", help="frames taken from a video, instead of --fps")
    seen.add_argument("--max-frames", type=int, metavar="N", help="most frames taken from a video")
    said = parser.add_argument_group("how it answers (defaults: generation_config.json)")
    said.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    said.add_argument("--temperature", type=float, metavar="T", help="0 always takes the best token")
    said.add_argument("--top-k", type=int, metavar="K")
    said.add_argument("--top-p", type=float, metavar="P")
    said.add_argument("--min-p", type=float, metavar="P")
    said.add_argument("--repetition-penalty", type=float, metavar="R")
    said.add_argument("--presence-penalty", type=float, metavar="R")
    said.add_argument("--frequency-penalty", type=float, metavar="R")
    said.add_argument("--seed", type=int, metavar="N")
    said.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this; several allowed")


def run(arguments: argparse.Namespace) -> int:
    if arguments.draw and arguments.question is None:
        raise InputError(
            "--draw needs a question on the command line; in a conversation there is no one answer to draw."
        )
    if arguments.question is not None and not arguments.question.strip():
        raise InputError("the question is empty; ask something, or leave it out for a conversation.")
    _check_files(arguments)
    from foveal.engine.model import load
    from foveal.families.quantize import parsed

    model = load(
        arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        adapter=arguments.adapter,
        quantize=parsed(arguments.quantize, arguments.quantize_parts),
    )
    options = {name: getattr(arguments, name) for name in PROCESSING + SAMPLING}
    options = {name: value for name, value in options.items() if value is not None}
    if arguments.question is None:
        return _converse(model, arguments, options)
    answer = _say(model, [*_opening(arguments, arguments.question)], options, arguments.json)
    if arguments.draw:
        answer.draw(arguments.draw)
        if not answer.boxes:
            print(f"foveal: the answer has no boxes; {arguments.draw} shows the image as it is.", file=sys.stderr)
    return 0


def _check_files(arguments: argparse.Namespace) -> None:
    """Finds wrong names before a large model is loaded."""
    from foveal.core.media import MediaBudget
    from foveal.engine.answer import picture_format
    from foveal.processing.media import open_bytes

    for source in (*arguments.image, *arguments.video):
        with open_bytes(source, budget=MediaBudget()):
            pass
    if arguments.draw:
        picture_format(Path(arguments.draw))
        if not arguments.image:
            raise InputError("--draw needs an --image to draw on.")


def _opening(arguments: argparse.Namespace, question: str) -> Iterator[dict[str, Any]]:
    if arguments.system is not None:
        yield {"role": "system", "content": arguments.system}
    media = [{"type": "image", "image": source} for source in arguments.image]
    media += [{"type": "video", "video": source} for source in arguments.video]
    yield {"role": "user", "content": [*media, {"type": "text", "text": question}]}


def _say(model: "Model", messages: list[dict[str, Any]], options: dict[str, Any], as_json: bool) -> "Answer":
    stream = model.stream(messages, **options)
    for piece in stream:
        if not as_json:
            print(piece, end="", flush=True)
    answer = stream.answer
    if as_json:
        print(json.dumps(answer.to_json(), ensure_ascii=False), flush=True)
        return answer
    print()
    for box in answer.boxes:
        left, top, right, bottom = (round(v) for v in box.corners)
        note = f"  ({', '.join(box.flags)})" if box.flags else ""
        print(f"  {box.label or 'box'}: ({left}, {top}) to ({right}, {bottom}) px{note}")
    for point in answer.points:
        x, y = (round(v) for v in point.place)
        note = f"  ({', '.join(point.flags)})" if point.flags else ""
        print(f"  {point.label or 'point'}: ({x}, {y}) px{note}")
    if answer.finish_reason == "length":
        print(f"foveal: the answer was cut after {len(answer.ids)} tokens; raise --max-tokens.", file=sys.stderr)
    return answer


def _converse(model: "Model", arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    messages: list[dict[str, Any]] = []
    interactive = sys.stdin.isatty()
    if interactive and not arguments.json:
        print("Ask away; an empty line or Ctrl-D ends the conversation.")
    while True:
        if interactive:
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return 0
        if messages:
            messages.append({"role": "user", "content": line})
        else:
            messages += _opening(arguments, line)
        answer = _say(model, messages, options, arguments.json)
        messages.append(answer.message)
