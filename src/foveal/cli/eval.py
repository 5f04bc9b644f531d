"""`foveal eval`: grades a model on questions about scenes, beside what can be had without looking."""

import argparse
import json
import sys
from pathlib import Path

from foveal.core.errors import InputError

HELP = "grade a model on questions about scenes"
EXAMPLE = """examples:
  foveal eval tests/data_files/scenes              (stored scenes, the model inside)
  foveal eval --sprites build/nano/sprites.npz     (1,000 scenes made from held-out pictures)"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", help="stored scenes: pictures and scenes.json")
    parser.add_argument("--sprites", metavar="FILE", help="make scenes from the held-out pictures of this file instead")
    parser.add_argument("--scenes", type=int, default=1000, metavar="N", help="scenes to make (default 1000)")
    parser.add_argument("--unseen-wordings", action="store_true", help="ask in words that training kept out")
    parser.add_argument("--model", "-m", metavar="NAME", help="hub name or folder; default: the small model inside")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="questions at a time (default 32)")
    parser.add_argument("--no-blind", action="store_true", help="leave out the run with empty pictures")
    parser.add_argument("--quantize", metavar="KIND", help="round the language model's weights: int8 or int4")
    parser.add_argument("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; default: as in the files")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or mps; default: an accelerator if there is one")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for programs")


def run(arguments: argparse.Namespace) -> int:
    if (arguments.folder is None) == (arguments.sprites is None):
        raise InputError("pass a folder of stored scenes or --sprites FILE, and not both.")
    if arguments.folder is not None and arguments.unseen_wordings:
        raise InputError("--unseen-wordings belongs to --sprites; stored scenes have their own questions.")
    from foveal.data.sprites import SpriteSet
    from foveal.engine.model import load
    from foveal.eval.run import evaluate
    from foveal.eval.tasks.scenes import SceneTask

    if arguments.folder is not None:
        task = SceneTask.stored(Path(arguments.folder))
    else:
        wordings = "unseen" if arguments.unseen_wordings else "test"
        task = SceneTask.generated(SpriteSet.load(Path(arguments.sprites)), scenes=arguments.scenes, wordings=wordings)
    model = load(arguments.model, dtype=arguments.dtype, device=arguments.device, quantize=arguments.quantize)

    def progress(done: int, total: int) -> None:
        print(f"\rfoveal: {done} of {total} questions", end="" if done < total else "\n", file=sys.stderr, flush=True)

    result = evaluate(
        model,
        task,
        batch=arguments.batch,
        limit=arguments.limit,
        blind=not arguments.no_blind,
        progress=progress if sys.stderr.isatty() else None,
    )
    if arguments.json:
        print(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        print(f"{task.name}: {result.seconds:.1f} s\n\n{result.table()}")
    return 0
