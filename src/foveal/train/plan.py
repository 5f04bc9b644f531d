"""What a run will do, before a weight is read: what learns, tokens of samples, memory, steps."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal.core.errors import FovealError
from foveal.data.augment import Augmentation
from foveal.families.describe import describe, folder_of
from foveal.families.load import DTYPES, Loaded
from foveal.train.batches import Feed
from foveal.train.run import Fresh, Run, sized
from foveal.train.stage import Stage
from foveal.train.task import NextToken, Task

SAMPLES = 8
"""Samples that are read for a plan."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the network: its parameters, and those of them that learn."""

    name: str
    parameters: int
    learned: int


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What a stage will do.

    Attributes:
        name, steps, batch, rate, schedule, dtype: as the stage says (highest rate).
        parts: of the network.
        tensors: tensors that learn.
        tokens: fewest, mean and most tokens of the samples that were read.
        visual: mean visual tokens among them.
        packs: packs a step on one process, about.
        augment: how pictures are changed; None where they are not.
        weights_bytes, training_bytes, activations_bytes: the network; float32 weights, moments, gradients and
            averages of what learns; results kept for the backward pass of a full pack, about.
        unread: why a sample could not be read, if one could not.
    """

    name: str
    steps: int
    batch: int
    rate: float
    schedule: str
    dtype: str
    parts: tuple[Part, ...]
    tensors: int
    tokens: tuple[int, float, int]
    visual: float
    packs: int
    augment: str | None
    weights_bytes: int
    training_bytes: int
    activations_bytes: int
    unread: str | None

    @property
    def memory_bytes(self) -> int:
        """All of it; torch itself comes on top."""
        return self.weights_bytes + self.training_bytes + self.activations_bytes


def plan(run: Run) -> list[StagePlan]:
    """The plan of every stage."""
    loaded = outline(run)
    return [plan_stage(loaded, stage) for stage in run.stages]


def outline(run: Run) -> Loaded:
    """The run's model without its weights, unless something is put into it."""
    if run.adapt is not None:
        return run.load()
    with torch.device("meta"):
        if isinstance(run.model, Fresh):
            fresh = run.model
            network = fresh.family.build(fresh.config)
            return Loaded(
                folder=Path(), family=fresh.family, config=fresh.config, processor=fresh.processor, generation={},
                network=network,
            )  # fmt: skip
        described = describe(folder_of(run.model, weights=False))
        return Loaded(**vars(described), network=described.family.build(described.config))


def plan_stage(loaded: Loaded, stage: Stage) -> StagePlan:
    """The plan of one stage; reads its first `SAMPLES` samples."""
    rows = stage.rates(loaded.network.named_parameters())
    learned = {name: parameter.numel() for name, parameter, _ in rows}
    counts: dict[str, list[int]] = {}
    for name, parameter in loaded.network.named_parameters():
        count = counts.setdefault(name.partition(".")[0], [0, 0])
        count[0] += parameter.numel()
        count[1] += learned.get(name, 0)
    item = next(loaded.network.parameters()).element_size()
    if stage.dtype is not None:
        item = DTYPES[stage.dtype].itemsize
    there = sized(loaded, stage)
    task, processor = (stage.task or NextToken()).fitted(there.processor, there.config)
    tokens, visual, patches, unread = _read(stage, task, processor)
    mean = sum(tokens) / len(tokens) if tokens else 0.0
    per_pack = stage.batch if task.whole else max(1, int(stage.max_tokens // max(1.0, mean)))
    full = {
        "tokens": min(per_pack, stage.batch) * mean,
        "visual": min(per_pack, stage.batch) * visual,
        "patches": min(per_pack, stage.batch) * patches,
    }
    number = sum(learned.values())
    return StagePlan(
        name=stage.name,
        steps=stage.steps,
        batch=stage.batch,
        rate=stage.rate,
        schedule=stage.schedule,
        dtype=stage.dtype or str(next(loaded.network.parameters()).dtype).removeprefix("torch."),
        parts=tuple(Part(name=n, parameters=a, learned=b) for n, (a, b) in counts.items()),
        tensors=len(rows),
        tokens=(min(tokens, default=0), round(mean, 1), max(tokens, default=0)),
        visual=round(visual, 1),
        packs=-(-stage.batch // per_pack),
        augment=_changes(stage.augment),
        weights_bytes=item * sum(a for a, _ in counts.values()),
        training_bytes=number * (4 + 8 + 4 + item + (4 if stage.average else 0)),
        activations_bytes=int(activations(loaded.network, rows, full, item, whole=not stage.checkpointing)),
        unread=unread,
    )


def _changes(augment: Any) -> str | None:
    """Augmentation in words: the settings that do something, or the name of a function."""
    if not isinstance(augment, Augmentation):
        return None if augment is None else str(getattr(augment, "__qualname__", augment))
    said = []
    for field in fields(augment):
        value = getattr(augment, field.name)
        if value != field.default:
            said.append(f"{field.name} {' to '.join(f'{v:g}' for v in value) if isinstance(value, tuple) else value}")
    return ", ".join(said) or None


def _read(stage: Stage, task: Task, processor: Any) -> tuple[list[int], float, float, str | None]:
    """Tokens of the first samples, their mean visual tokens and patches, and what was wrong with one."""
    feed, sizes, unread = Feed(stage, task, processor), [], None
    for number in range(min(SAMPLES, stage.batch * stage.steps)):
        try:
            sizes.append(task.size(feed.piece(feed.sample(number))))
        except FovealError as error:
            unread = str(error)
    count = max(1, len(sizes))
    tokens = [size.tokens for size in sizes]
    return tokens, sum(s.visual for s in sizes) / count, sum(s.patches for s in sizes) / count, unread


def activations(network: nn.Module, rows: Any, full: Mapping[str, float], item: int, *, whole: bool) -> float:
    """Bytes that the backward pass of one pack needs: inputs and results of linear maps, or of layers alone.

    Parts before the first one that learns need none.
    """
    learns = {name.partition(".")[0] for name, _, _ in rows}
    total, flows = 0.0, False
    for name, part in network.named_children():
        flows = flows or name in learns
        if not flows:
            continue
        unit = full[{"vision": "patches", "adapter": "visual"}.get(name, "tokens")]
        if whole:
            maps = [m for m in part.modules() if isinstance(m, nn.Linear)]
            total += unit * item * sum(m.in_features + m.out_features for m in maps)
        else:
            lists = [m for m in part.modules() if isinstance(m, nn.ModuleList)]
            inner = [next(layer.parameters()).shape[-1] for layers in lists for layer in layers]
            total += unit * item * sum(inner)
    return total
