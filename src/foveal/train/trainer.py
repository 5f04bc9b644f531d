"""The loop over a run: for every stage, for every step, packs in and one update of the weights out.

    loss of a step = sum over packs and processes of each term's sum / (sum of its weights)

so that a token counts alike in a short pack and in a long one, on one process and on many. The state of a stage is its
step number, the weights and the optimizer's moments: samples and random numbers are functions of (seed, step).
"""

import contextlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.core.errors import ConfigError
from foveal.families.load import DTYPES, Loaded
from foveal.train.batches import Feed, StepPacks
from foveal.train.board import Board
from foveal.train.checkpoint import Checkpoints, append_json, cut_rows, read_checkpoint
from foveal.train.loop import DivergedError
from foveal.train.meter import Meter, Progress, peak_operations
from foveal.train.optim import learned
from foveal.train.parallel import together
from foveal.train.ranks import Ranks
from foveal.train.replay import write_replay
from foveal.train.run import Run, sized
from foveal.train.scale import LossScale
from foveal.train.sharded import units
from foveal.train.stage import Stage
from foveal.train.task import NextToken, Task

log = logging.getLogger(__name__)

Report = Callable[[Progress], None]


def train(run: Run, *, report: Report | None = None) -> Loaded:
    """Takes a run through its stages and returns the model, from its newest checkpoint on if there is one.

    Args:
        run: what a recipe returns.
        report: called after every step, for progress bars.

    Raises:
        DivergedError: a loss or gradient is not finite; a replay file lies in the stage's folder.
        KeyboardInterrupt: Ctrl-C; the stage was saved first.
    """
    with together(run) as ranks:
        loaded = replace_device(run, ranks.loads_on).load()
        dtype = run.stages[0].dtype
        ranks.place(loaded.network, None if dtype is None else DTYPES[dtype])
        for number, stage in enumerate(run.stages):
            progress = StageRun(run, stage, loaded, before=run.stages[:number], ranks=ranks)
            loaded = progress.go(report)
        return ranks.gathered(run, loaded)


def replace_device(run: Run, device: str) -> Run:
    """The run on one device."""
    return run.changed({"device": device})


@dataclass(frozen=True)
class Computed:
    """A step's loss, and of each pack this process's share of it."""

    loss: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Totals:
    """The weight of every term of a step, over all packs."""

    weights: tuple[float, ...]

    @classmethod
    def of(cls, weights: Sequence[tuple[float, ...]]) -> "Totals":
        """Added up over packs."""
        return cls(tuple(sum(column) for column in zip(*weights, strict=True)))


class StageRun:
    """One stage in progress.

    Args:
        run: the whole run.
        stage: which of its stages.
        loaded: the model before the stage, or before an earlier one.
        before: stages whose results are taken over from their last checkpoints.
        ranks: the processes that train together.
    """

    def __init__(self, run: Run, stage: Stage, loaded: Loaded, *, before: Sequence[Stage] = (), ranks: Ranks) -> None:
        self.run, self.stage, self.ranks = run, stage, ranks
        self.loaded = sized(loaded, stage)
        self.network: nn.Module = loaded.network
        task: Task = stage.task or NextToken()
        self.task, processor = task.fitted(self.loaded.processor, self.loaded.config)
        self.feed = Feed(stage, self.task, processor, rank=ranks.rank, world=ranks.world)
        self.folder = run.folder / stage.name
        self.checkpoints = Checkpoints(self.folder, stage.name, keep_last=stage.keep_last, keep_every=stage.keep_every)
        if stage.dtype is not None:
            self.network.to(DTYPES[stage.dtype])
        self.network.requires_grad_(False)
        rows = stage.rates(self.network.named_parameters())
        for _, parameter, _ in rows:
            parameter.requires_grad_(True)
        self.parameters = [parameter for _, parameter, _ in rows]
        self.optimizer = ranks.optimizer(
            rows, weight_decay=stage.weight_decay, betas=stage.betas, eps=stage.eps, average=stage.average
        )
        self.scale = LossScale(on=stage.dtype == "fp16")
        self.step = 0
        for earlier in before:
            self._take_over(earlier)

    def _take_over(self, earlier: Stage) -> None:
        """Begins with what an earlier stage of the run learned."""
        path = Checkpoints(self.run.folder / earlier.name, earlier.name).path(earlier.steps)
        kept, _ = read_checkpoint(path, stage=earlier.name, rows=self.ranks.rows)
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if (found := learned(kept, name)) is not None:
                    self.ranks.own(parameter).copy_(found)
        self.optimizer.adopt(kept)

    def resume(self) -> None:
        """Goes on from the newest checkpoint, if there is one."""
        found = self.checkpoints.newest(self.ranks.rows)
        if found is not None:
            self.restore(*found)
            log.info("stage %s goes on at step %d of %d", self.stage.name, self.step, self.stage.steps)

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
        """Takes up a checkpoint. Raises `ConfigError` where the stage's samples are counted otherwise by now."""
        for name, value in self._notes().items():
            if name in notes and notes[name] != value:
                raise ConfigError(
                    f"stage {self.stage.name}: its checkpoint was made with {name} = {notes[name]}, now it is {value}, "
                    f"so samples would repeat or be lost. Set it back, or remove {self.folder} to begin anew."
                )
        self.optimizer.restore(tensors)
        self.scale.restore(tensors)
        self.step = int(notes.get("step", 0))
        self.optimizer.steps = self.step

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as named tensors."""
        return {**self.optimizer.state(), **self.scale.state()}

    def _agreed(self) -> None:
        """Raises `ConfigError` where processes would go on from different steps."""
        most, least = self.ranks.most([self.step, -self.step])
        if most != -least:
            raise ConfigError(
                f"stage {self.stage.name}: processes would go on from step {-least:.0f} and from step {most:.0f}. All "
                f"must see the same checkpoints; put {self.run.folder} on a disk that every machine shares."
            )

    def save(self) -> None:
        """Writes a checkpoint of the steps done."""
        state = self.ranks.whole(self.state())
        if self.ranks.first:
            self.checkpoints.write(state, step=self.step, notes=self._notes())
        self.ranks.wait()

    def _notes(self) -> dict[str, str]:
        return {"batch": str(self.stage.batch), "seed": str(self.stage.seed)}

    def go(self, report: Report | None = None) -> Loaded:
        """Runs the stage to its end, exports the model and returns it."""
        stage = self.stage
        self.resume()
        self._agreed()
        logfile = self.folder / "log.jsonl"
        samples = self.folder / f"samples-{self.ranks.rank}.jsonl"
        if self.ranks.first:
            for file in [logfile, *self.folder.glob("samples-*.jsonl")]:
                cut_rows(file, self.step)
        self.ranks.wait()
        peak = peak_operations(self.ranks.device, next(self.network.parameters()).dtype)
        meter = Meter(self.network, peak=peak, world=self.ranks.world)
        shown = Board(self.folder if self.ranks.first else None, self.step)
        figures: dict[str, float] = {}
        saved = self.step
        self.network.train()
        made = contextlib.closing(self.feed.steps(self.step, workers=self.run.workers))
        with interrupts() as asked, recomputing(self.network, on=stage.checkpointing), made as steps, shown as board:
            for packs in steps:
                done, norm = self.update(packs)
                if self.run.log_samples:
                    append_json(samples, {"step": self.step, "samples": [i for ids in packs.ids for i in ids]})
                meter.add(
                    packs.sizes,
                    samples=sum(map(len, packs.ids)),
                    learned=sum(w[0] for w in packs.weights),
                    skipped=len(packs.skipped),
                    loss=done.loss,
                    norm=norm,
                )
                for reason in packs.skipped:
                    log.warning("left out: %s", reason)
                stop = self.ranks.most([asked.is_set()])[0] > 0
                saving = self.step % stage.save_every == 0 or self.step == stage.steps or stop
                rate = stage.rate * stage.factor(self.step - 1)
                if saving or self.step % stage.log_every == 0:
                    names = list(meter.sums)
                    sums = dict(zip(names, self.ranks.sum(list(meter.sums.values())), strict=True))
                    figures = meter.row(sums)
                    self._log({"stage": stage.name, "step": self.step, "rate": rate, **figures}, logfile, board)
                if saving:
                    self.save()
                    saved = self.step
                if self._evaluates():
                    self._evaluate(logfile, board)
                if report is not None and self.ranks.first:
                    report(
                        Progress(
                            stage=stage.name, step=self.step, steps=stage.steps, loss=done.loss, norm=norm, rate=rate,
                            figures=figures,
                        )
                    )  # fmt: skip
                if stop and self.step < stage.steps:
                    log.warning("stopped; stage %s is saved at step %d, the same command goes on", stage.name, saved)
                    raise KeyboardInterrupt
        self.network.eval()
        return self._finish()

    def update(self, packs: StepPacks) -> tuple[Computed, float]:
        """One step: gradients of all packs, and an update. Returns the loss and the gradient's norm.

        Raises `DivergedError` before anything is changed.
        """
        done = self.compute(packs)
        if not math.isfinite(done.loss):
            self._diverged(packs, f"the loss is {done.loss}", done.shares)
        self.ranks.reduce(self.parameters)
        norm = self.optimizer.step(self.stage.factor(self.step), self.stage.clip, scale=self.scale.value)
        if not self.scale.judge(finite=math.isfinite(norm)):
            self._diverged(packs, f"the gradient's norm is {norm}", ())
        self.step += 1
        return done, norm

    def compute(self, packs: StepPacks) -> Computed:
        """The loss of a step over all processes, and this process's gradients of it, times the loss scale."""
        totals = Totals(tuple(self.ranks.sum(Totals.of(packs.weights).weights)))
        count = int(self.ranks.most([len(packs.packs)])[0])
        shares = self.shares(packs, totals, rank=self.ranks.rank, count=count)
        return Computed(self.ranks.sum([sum(shares)])[0], tuple(shares))

    def shares(self, packs: StepPacks, totals: "Totals", *, rank: int, count: int = 0) -> list[float]:
        """Every pack's share of the step's loss; gradients are added to those of the parameters.

        With fewer than `count` packs, empty ones follow: every process runs as many forward passes as the others.
        """
        torch.manual_seed(step_seed(self.stage.seed, packs.step, rank))
        shares = []
        for pack in [*packs.packs, *(self.feed.nothing() for _ in range(count - len(packs.packs)))]:
            value = self.value(pack, totals)
            if value.requires_grad:  # text alone does not reach a tower that learns alone
                (value * self.scale.value).backward()  # type: ignore[no-untyped-call]
            shares.append(float(value.detach()))
        return shares

    def value(self, pack: Any, totals: "Totals") -> Tensor:
        """A pack's share of a step's loss."""
        terms = self.task.loss(self.network, pack)
        parts = [part * (factor / (total or 1.0)) for (part, factor), total in zip(terms, totals.weights, strict=True)]
        return torch.stack(parts).sum()

    def _diverged(self, packs: StepPacks, what: str, shares: Sequence[float]) -> None:
        """Writes what a replay needs and stops."""
        guilty = [ids for ids, share in zip(packs.ids, shares, strict=False) if not math.isfinite(share)]
        names = [name for ids in guilty or packs.ids for name in ids]
        file = self.folder / f"replay-{self.step:08d}.json"
        state = self.ranks.whole(self.state())
        if self.ranks.first:
            write_replay(
                file, self.run, self.stage, state, self._notes(), step=self.step, what=what, samples=names,
                world=self.ranks.world,
            )  # fmt: skip
        first = self.step * self.stage.batch
        raise DivergedError(
            f"stage {self.stage.name}, step {self.step}, samples {first} to {first + self.stage.batch - 1}: {what}. "
            f"It is in {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}. `foveal train --replay {file}` shows "
            "which sample and which part of the network; nothing was changed by this step."
        )

    def _evaluates(self) -> bool:
        every = self.stage.eval_every
        return self.run.evaluate is not None and (
            self.step == self.stage.steps or bool(every and self.step % every == 0)
        )

    def _evaluate(self, logfile: Path, board: Board) -> None:
        if self.run.evaluate is None:
            return
        self.network.eval()
        whole = self.ranks.gathered(self.run, self.loaded, device=str(self.ranks.device))
        with torch.no_grad():
            found = dict(self.run.evaluate(whole, self.step)) if self.ranks.first else {}
        self.ranks.wait()
        self.network.train()
        self._log({"stage": self.stage.name, "step": self.step, "evaluation": found}, logfile, board)

    def _log(self, row: dict[str, Any], logfile: Path, board: Board) -> None:
        if not self.ranks.first:
            return
        append_json(logfile, row)
        log.info("%s", row)
        board.add(row)

    def _finish(self) -> Loaded:
        """Puts the learned weights into the network and exports it."""
        weights = self.optimizer.exported()
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if name in weights:
                    self.ranks.own(parameter).copy_(weights[name])
        missing = self.ranks.first and not (self.folder / "model" / "config.json").exists()
        if self.ranks.most([missing])[0]:
            whole = self.ranks.gathered(self.run, self.loaded)
            if self.ranks.first:
                self.run.save(whole, self.folder / "model")
        self.ranks.wait()
        return self.loaded


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of everything random (dropout) in one step of one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)
        log.warning("Ctrl-C: this step is finished and saved; once more leaves at once")

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def recomputing(network: nn.Module, *, on: bool = True) -> Iterator[None]:
    """Inside, every layer of the network keeps its input only, and is computed again in the backward pass
    (Chen et al. 2016)."""
    layers = units(network) if on else []
    for layer in layers:
        layer.forward = _kept(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _kept(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False)

    return run
