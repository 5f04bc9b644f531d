"""Replay files: what is needed to run one step again that went wrong, and to find where.

Beside `replay-00000012.json` lies `replay-00000012.safetensors`: weights and moments as they were before that step.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, FovealError
from foveal.train.checkpoint import read_noted, write_checkpoint
from foveal.train.ranks import Ranks
from foveal.train.stage import Stage

if TYPE_CHECKING:
    from foveal.train.run import Run

KEYS = ("recipe", "set", "stage", "step", "world", "samples", "what", "state")


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What running a step again showed.

    Attributes:
        stage, step: which.
        what: what went wrong when it ran.
        loss: of the step now.
        norm: of the gradient now; None where the loss is not finite.
        samples: samples whose own loss is not finite, each with that loss.
        module: the first part of the network whose result is not finite for them, or None.
        parameters: names of parameters whose gradient is not finite, the first eight.
    """

    stage: str
    step: int
    what: str
    loss: float
    norm: float | None
    samples: tuple[tuple[str, float], ...]
    module: str | None
    parameters: tuple[str, ...]

    @property
    def reproduced(self) -> bool:
        """Whether it went wrong again."""
        return not math.isfinite(self.loss) or (self.norm is not None and not math.isfinite(self.norm))


def write_replay(
    path: Path,
    run: "Run",
    stage: Stage,
    state: dict[str, Tensor],
    notes: Mapping[str, str],
    *,
    step: int,
    what: str,
    samples: Sequence[str],
    world: int,
) -> None:
    """Writes a replay file and the state that belongs to it."""
    kept = path.with_suffix(".safetensors")
    write_checkpoint(kept, state, step=step, stage=stage.name, notes=notes)
    origin = run.origin
    values = {
        "recipe": None if origin is None else origin.recipe,
        "set": [] if origin is None else list(origin.settings),
        "stage": stage.name,
        "step": step,
        "world": world,
        "samples": list(samples),
        "what": what,
        "state": kept.name,
    }
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_replay(path: Path) -> dict[str, Any]:
    """A replay file's values. Raises `ConfigError` for a file that is none."""
    values = read_json(path)
    missing = [key for key in KEYS if key not in values]
    if missing:
        raise ConfigError(f"{path} is no replay file: {', '.join(missing)} missing.")
    return values


def replay(path: Path, run: "Run") -> Replayed:
    """Runs the step of a replay file again, for all processes one after another, and looks where it goes wrong.

    Args:
        path: a replay file.
        run: the run that wrote it, as its recipe makes it.
    """
    from foveal.train.batches import Feed
    from foveal.train.trainer import StageRun, Totals

    values = read_replay(path)
    stage = run.stage(values["stage"])
    before = run.stages[: run.stages.index(stage)]
    stage_run = StageRun(run, stage, run.load(), before=before, ranks=Ranks())
    stage_run.restore(*read_noted(path.with_name(values["state"])))
    step, world = int(values["step"]), int(values["world"])
    feeds = [Feed(stage, stage_run.task, stage_run.feed.processor, rank=r, world=world) for r in range(world)]
    steps = [feed.packs(step) for feed in feeds]
    totals = Totals.of([w for packs in steps for w in packs.weights])
    stage_run.network.train()
    losses: list[float] = []
    bad: list[tuple[str, float]] = []
    module: str | None = None
    for feed, packs in zip(feeds, steps, strict=True):
        losses += stage_run.shares(packs, totals, rank=feed.rank)
        for number in feed.numbers(step):
            try:
                sample = feed.sample(number)
            except FovealError:  # left out then, too
                continue
            name = f"{sample.set}:{sample.id}"
            if not any(name in ids for ids in packs.ids):
                continue
            piece = feed.task.join([feed.piece(sample)])
            with torch.no_grad():
                own, found = _watched(stage_run.network, partial(stage_run.value, piece, totals))
            if not math.isfinite(own):
                bad.append((name, own))
                module = module or found
    loss, norm = sum(losses), None
    names: tuple[str, ...] = ()
    if math.isfinite(loss):
        stage_run.ranks.reduce(stage_run.parameters)
        rows = stage_run.optimizer.rows
        names = tuple(n for n, p, _ in rows if p.grad is not None and not bool(p.grad.isfinite().all()))[:8]
        total = torch.stack([p.grad.float().norm() for _, p, _ in rows if p.grad is not None]).norm()
        norm = float(total) / stage_run.scale.value
    return Replayed(
        stage=stage.name, step=step, what=values["what"], loss=loss, norm=norm, samples=tuple(bad), module=module,
        parameters=names,
    )  # fmt: skip


def _watched(network: nn.Module, compute: Callable[[], Tensor]) -> tuple[float, str | None]:
    """A loss, and the first module whose result is not finite."""
    first: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, result: Any) -> None:  # noqa: ARG001
            if not first and not _finite(result):
                first.append(name)

        return hook

    leaves = [(n, m) for n, m in network.named_modules() if n and not any(True for _ in m.children())]
    hooks = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        return float(compute().detach()), first[0] if first else None
    finally:
        for hook in hooks:
            hook.remove()


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, tuple | list):
        return all(_finite(v) for v in value)
    return True
