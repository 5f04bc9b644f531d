"""Toy runs on one and on two processes: a script that takes them all, one after another.

    python tests/helpers/parallel_runs.py FOLDER

torch is imported once; the processes are forked from this one, which has no threads yet, and meet as under torchrun.
Every run leaves its folder; what a run raises is in FOLDER/NAME-RANK.error.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from foveal.core.errors import FovealError
from foveal.data.mixture import Mixture
from foveal.data.toy import ToySet
from foveal.language.expert_config import Mixture as Mixed
from foveal.nn.routing import Routing
from foveal.train import parallel
from foveal.train.run import Run
from foveal.train.tiny import tiny
from foveal.train.trainer import train
from tests.helpers import training

LIMIT_S = 300.0


class Halves:
    """Text alone for the first of two processes, pictures for the second."""

    def __init__(self) -> None:
        self.text = Mixture([(ToySet("text", 5), 1.0)], seed=1)
        self.pictures = Mixture([(ToySet("find", 12), 1.0)], seed=2)

    def at(self, n: int) -> tuple[Any, int]:
        return (self.pictures if n % 2 else self.text).at(n // 2)


def total(loaded: Any, step: int) -> dict[str, float]:
    """A figure that needs every weight."""
    return {"step": step, "weights": sum(float(p.detach().double().abs().sum()) for p in loaded.network.parameters())}


def runs(folder: Path) -> list[tuple[str, int, Run]]:
    """Name, processes, run; runs of one folder go on from each other."""

    def made(name: str, processes: int, kind: Any, **changes: Any) -> tuple[str, int, Run]:
        first = training.stage(**{"schedule": "constant", "warmup": 1, "save_every": 2, "average": 0.5, **changes})
        stages = (
            (first, training.stage(name="next", steps=2, dtype=first.dtype)) if name.startswith("part") else (first,)
        )
        where, evaluate = folder / name.partition(".")[0], total if name.startswith("part") else None
        return name, processes, training.run(where, *stages, parallel=kind, log_samples=True, evaluate=evaluate)

    def experts(name: str, processes: int, kind: Any) -> tuple[str, int, Run]:
        """DeepSeek-VL2, a sample a process: each has fewer tokens than there are experts."""
        stage = training.stage(
            steps=3, batch=2, warmup=1, data=Halves(), pixels=None, max_tokens=4096, checkpointing=kind == "fsdp"
        )
        many = Mixed(routing=Routing(experts=192, chosen=1), width=8, shared=1, first=1)
        model = tiny("deepseek_vl2", mixture=many)
        return name, processes, training.run(folder / name, stage, model=model, parallel=kind)

    halves = {"data": Halves(), "steps": 3}
    part = {"trainable": (("vision.*", 1e-3), ("adapter.*", 1e-3), ("*", False)), "steps": 2}
    return [
        made("alone", 1, None, steps=4),
        made("ddp", 2, "ddp", steps=4),
        made("fsdp", 2, "fsdp", steps=4),
        made("moved.1", 1, None, steps=1),
        made("moved.2", 2, "fsdp", steps=2),
        made("moved.3", 1, "fsdp", steps=3),
        made("moved.4", 2, "ddp", steps=4),
        made("halves-alone", 1, None, **halves),
        made("halves-ddp", 2, "ddp", **halves),
        made("halves-fsdp", 2, "fsdp", **halves, checkpointing=True),
        made("part-alone", 1, None, **part),
        made("part-fsdp", 2, "fsdp", **part),
        made("bf16-alone", 1, None, steps=3, dtype="bf16"),
        made("bf16-fsdp", 2, "fsdp", steps=3, dtype="bf16"),
        experts("experts-alone", 1, None),
        experts("experts-ddp", 2, "ddp"),
        experts("experts-fsdp", 2, "fsdp"),
        made("not-parallel", 2, None),
    ]


def work(name: str, run: Run, rank: int, world: int, port: int, folder: Path) -> None:
    """One process of a run."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, (str(rank), str(rank), str(world), "127.0.0.1", str(port)), strict=True))
    torch.set_num_threads(1)
    parallel.PATIENCE = timedelta(seconds=200)
    try:
        train(run)
    except FovealError as error:
        (folder / f"{name}-{rank}.error").write_text(str(error))


def together(folder: Path, every: Sequence[tuple[str, int, Run]]) -> None:
    """Takes runs one after another."""
    context = multiprocessing.get_context("fork")
    for name, world, run in every:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [context.Process(target=work, args=(name, run, r, world, port, folder)) for r in range(world)]
        for process in started:
            process.start()
        for process in started:
            process.join(LIMIT_S)
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
        if any(codes):
            raise SystemExit(f"{name}: processes left with {codes}; None: not within {LIMIT_S} s")


if __name__ == "__main__":
    together(Path(sys.argv[1]), runs(Path(sys.argv[1])))
