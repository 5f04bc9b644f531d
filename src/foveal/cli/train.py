"""`foveal train`: a recipe run to its end, planned, drawn, or the step that went wrong run again."""

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from foveal.cli.output import size, table
from foveal.core.errors import InputError

if TYPE_CHECKING:
    from foveal.train.meter import Progress
    from foveal.train.plan import StagePlan
    from foveal.train.replay import Replayed
    from foveal.train.run import Run

HELP = "train a model as a recipe says"
EXAMPLE = """examples:
  foveal train recipes/qwen_vl/1_align.py --set size=tiny --dry-run     (what would happen)
  foveal train recipes/qwen_vl/1_align.py --set size=tiny train.rate=1e-4
  foveal train recipes/qwen_vl/1_align.py --set size=tiny --plot curves.png
  foveal train --replay build/qwen_vl/align/replay-00000012.json        (a step whose loss was not finite)

The same command goes on where it was stopped. Ctrl-C finishes the step, saves and leaves with status 130."""

WIDTH = 24
"""Characters of the bar."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a Python file with a function run() that returns a Run")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="settings",
        help="an argument of the recipe, or STAGE.FIELD, or train.FIELD for all stages",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and leave")
    parser.add_argument("--plot", metavar="FILE", help="draw what was logged so far as a PNG, and leave")
    parser.add_argument("--replay", metavar="FILE", help="run the step of a replay file again and show where it fails")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(arguments: argparse.Namespace) -> int:
    from foveal.train.recipe import load_recipe

    if arguments.replay is not None:
        return _replay(arguments)
    if arguments.recipe is None:
        raise InputError("name a recipe, such as recipes/qwen_vl/1_align.py, or --replay FILE.")
    chosen = load_recipe(arguments.recipe, arguments.settings)
    if arguments.dry_run:
        return _plan(chosen, as_json=arguments.json)
    if arguments.plot is not None:
        return _plot(chosen, arguments.plot)
    from foveal.train.trainer import train

    bar = _Bar(sys.stderr.isatty(), as_json=arguments.json)
    logging.getLogger("foveal.train").setLevel(logging.WARNING)
    try:
        train(chosen, report=bar.show)
    finally:
        bar.end()
    for stage in chosen.stages if os.environ.get("RANK", "0") == "0" else ():
        print(chosen.folder / stage.name / "model")
    return 0


class _Bar:
    """Progress: one line that is drawn over and over on a terminal, a line whenever something was logged elsewhere."""

    def __init__(self, terminal: bool, *, as_json: bool) -> None:
        self.terminal, self.as_json, self.began, self.first = terminal, as_json, time.monotonic(), -1
        self.stage = ""
        self.shown: Mapping[str, float] | None = None

    def show(self, progress: "Progress") -> None:
        """Draws where the stage stands."""
        if progress.stage != self.stage:
            self.end()
            self.stage, self.began, self.first = progress.stage, time.monotonic(), progress.step
        fresh = progress.figures is not self.shown
        self.shown = progress.figures
        if self.as_json:
            if fresh:
                print(json.dumps({"stage": progress.stage, "step": progress.step, **progress.figures}), flush=True)
            return
        if not self.terminal and not fresh:
            return
        line = self._line(progress)
        print(
            f"\r{line}\x1b[K" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True
        )

    def _line(self, progress: "Progress") -> str:
        done = progress.step / progress.steps
        filled = "#" * round(WIDTH * done)
        passed, steps = time.monotonic() - self.began, progress.step - self.first
        left = "" if not steps else f", {_time(passed / steps * (progress.steps - progress.step))} left"
        known = progress.figures
        parts = [f"loss {progress.loss:.4f}", f"rate {progress.rate:.2e}"]
        for name, text in (
            ("tokens_per_s", "{:,.0f} tokens/s"),
            ("images_per_s", "{:.1f} images/s"),
            ("mfu", "MFU {:.1%}"),
            ("padding", "padding {:.0%}"),
            ("memory_gb", "{:.2f} GB"),
        ):
            if name in known:
                parts.append(text.format(known[name]))
        bar = f"[{filled.ljust(WIDTH, '.')}]"
        return f"{progress.stage} {progress.step}/{progress.steps} {bar} {', '.join(parts)}{left}"

    def end(self) -> None:
        """Leaves the line."""
        if self.terminal and self.stage and not self.as_json:
            print(file=sys.stderr)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _plan(chosen: "Run", *, as_json: bool) -> int:
    from foveal.train.plan import plan

    plans = plan(chosen)
    if as_json:
        rows = [dataclasses.asdict(p) | {"memory_bytes": p.memory_bytes} for p in plans]
        print(json.dumps({"folder": str(chosen.folder), "stages": rows}, indent=2))
        return 0
    print("\n\n".join(_page(p) for p in plans))
    print(f"\nResults go to {chosen.folder}.")
    return 0


def _page(p: "StagePlan") -> str:
    rows = [("part", "parameters", "learned", "share")]
    rows += [
        (q.name, f"{q.parameters:,}", f"{q.learned:,}", f"{q.learned / max(1, q.parameters):.0%}") for q in p.parts
    ]
    fewest, mean, most = p.tokens
    lines = [
        f"stage {p.name}: {p.steps:,} steps of {p.batch:,} samples, {p.schedule} from {p.rate:g}, {p.dtype}",
        "",
        table(rows),
        "",
        f"  tensors that learn  {p.tensors:,}",
        f"  tokens a sample     {fewest:,} to {most:,}, {mean:,.0f} on average, {p.visual:,.0f} of them visual",
        f"  packs a step        {p.packs:,} on one process",
        f"  memory              {size(p.memory_bytes)}: weights {size(p.weights_bytes)}, training "
        f"{size(p.training_bytes)}, results of a pack about {size(p.activations_bytes)}",
    ]
    if p.augment is not None:
        lines.append(f"  pictures change by  {p.augment}")
    if p.unread is not None:
        lines.append(f"  not readable        {p.unread}")
    return "\n".join(lines)


def _plot(chosen: "Run", file: str) -> int:
    from pathlib import Path

    from foveal.train.curves import curves, plot

    points = curves(chosen.folder, [stage.name for stage in chosen.stages])
    plot(points, Path(file))
    print(f"{file}: {', '.join(points)}")
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from foveal.train.recipe import load_recipe
    from foveal.train.replay import read_replay, replay

    file = Path(arguments.replay)
    values = read_replay(file)
    recipe = arguments.recipe or values["recipe"]
    if recipe is None:
        raise InputError(f"{file} was not written by a recipe; name the recipe that makes its run.")
    found = replay(file, load_recipe(recipe, [*values["set"], *arguments.settings]))
    print(json.dumps(dataclasses.asdict(found), indent=2) if arguments.json else _found(found))
    return 0


def _found(found: "Replayed") -> str:
    lines = [f"stage {found.stage}, step {found.step}: {found.what}"]
    again = f"again: loss {found.loss}" + ("" if found.norm is None else f", norm of the gradient {found.norm}")
    lines.append(again if found.reproduced else f"not {again}")
    lines += [f"  {name}: {value} on its own" for name, value in found.samples]
    if found.module is not None:
        lines.append(f"  first result that is not finite: {found.module}")
    if found.parameters:
        lines.append(f"  gradients that are not finite: {', '.join(found.parameters)}")
    return "\n".join(lines)
