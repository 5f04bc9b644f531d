"""The training loop: batches in, gradient steps out, with logs and checkpoints."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from foveal.core.errors import FovealError
from foveal.train.checkpoint import append_json, read_checkpoint, write_checkpoint
from foveal.train.optim import MasterAdamW
from foveal.train.stage import Stage

log = logging.getLogger(__name__)
B = TypeVar("B")

Loss = Callable[[Any], tuple[Tensor, dict[str, float]]]
"""A batch -> the loss to minimise and figures to log."""


class DivergedError(FovealError):
    """The loss or the gradient is not a finite number."""


def run(
    stage: Stage,
    network: nn.Module,
    loss: Loss,
    batches: Callable[[int], Iterable[Any]],
    folder: Path,
    *,
    on_step: Callable[[int], None] | None = None,
) -> int:
    """Trains `network` through `stage` and returns the steps done, from a checkpoint on if `folder` has one.

    Args:
        stage: what learns, how long, how fast.
        network: module (or dictionary of modules) that `loss` computes with.
        loss: see `Loss`.
        batches: called with the first step to take; gives the batches from there on.
        folder: receives `last.safetensors` (weights and optimizer) and `log.jsonl`.
        on_step: called after every step, e.g. to grade.

    Under an initialised `torch.distributed` the gradients of all processes are averaged; each then passes batches
    and a folder of its own, and all begin with the same weights.

    Raises:
        DivergedError: at the first loss or gradient that is not finite; names the step and its samples.
    """
    network.requires_grad_(False)
    rows = stage.rates(network.named_parameters())
    for _, parameter, _ in rows:
        parameter.requires_grad_(True)
    optimizer = MasterAdamW(rows, weight_decay=stage.weight_decay, betas=stage.betas, average=stage.average)
    path = folder / "last.safetensors"
    step = 0
    if path.exists():
        kept, step = read_checkpoint(path, stage=stage.name)
        optimizer.restore(kept)
        log.info("stage %s goes on at step %d of %d", stage.name, step, stage.steps)
    network.train()
    sums: dict[str, float] = {}
    since, seen = time.perf_counter(), 0
    for batch in _until(batches(step), stage.steps - step):
        value, figures = loss(batch)
        if not math.isfinite(value.item()):
            raise DivergedError(_where(stage, step, f"the loss is {value.item()}"))
        value.backward()  # type: ignore[no-untyped-call]
        if distributed.is_initialized():
            share_gradients([parameter for _, parameter, _ in rows])
        norm = optimizer.step(stage.factor(step), stage.clip)
        if not math.isfinite(norm):
            raise DivergedError(_where(stage, step, f"the gradient's norm is {norm}"))
        step += 1
        seen += 1
        for name, figure in {"loss": value.item(), "norm": norm, **figures}.items():
            sums[name] = sums.get(name, 0.0) + figure
        if step % stage.log_every == 0 or step == stage.steps:
            now = time.perf_counter()
            row: dict[str, object] = {"stage": stage.name, "step": step, "rate": round(stage.factor(step - 1), 4)}
            row |= {name: round(total / seen, 4) for name, total in sums.items()}
            row["samples_per_s"] = round(seen * stage.batch / (now - since), 1)
            append_json(folder / "log.jsonl", row)
            log.info("%s", row)
            since, sums, seen = now, {}, 0
        if step % stage.save_every == 0 or step == stage.steps:
            write_checkpoint(path, optimizer.state(), step=step, stage=stage.name)
        if on_step is not None:
            on_step(step)
    network.eval()
    return step


def share_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over all processes; one that a process lacks counts as zero."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().reshape(-1) for p in parameters])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def _until(batches: Iterable[B], count: int) -> Iterator[B]:
    """The first `count` batches; nothing is drawn beyond them."""
    if count <= 0:
        return
    for index, batch in enumerate(batches, start=1):
        yield batch
        if index >= count:
            return


def _where(stage: Stage, step: int, what: str) -> str:
    first = step * stage.batch
    return (
        f"stage {stage.name}, step {step}, samples {first} to {first + stage.batch - 1}: {what}. "
        "Lower the learning rate or look at these samples; the last checkpoint is from before."
    )
