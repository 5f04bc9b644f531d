"""Losses of pairs on 1, 2 and 4 processes: a script that makes them and writes what each finds.

    python tests/helpers/ranks.py OUT.npz

torch is imported once; the processes are forked from this one, which has no threads yet, and meet through a file.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, distributed

from foveal.core.errors import InputError
from foveal.train.losses.contrastive import GATHERS, contrastive_loss, distill_loss
from foveal.train.losses.sigmoid import EXCHANGES, sigmoid_loss

PAIRS, WIDTH, TEACHER_WIDTH = 24, 16, 10
SCALE, BIAS, TEACHER_SCALE = 5.0, -5.0, 6.0
WORLDS = (1, 2, 4)
CHUNKS = (None, 5)
Found = dict[str, np.ndarray]


def features() -> dict[str, np.ndarray]:
    """Pairs that resemble each other, of length 1, and what a teacher says of them, in float64."""
    rng = np.random.default_rng(7)
    images = rng.standard_normal((PAIRS, WIDTH))
    texts = images + 1.5 * rng.standard_normal((PAIRS, WIDTH))
    teacher_images = rng.standard_normal((PAIRS, TEACHER_WIDTH))
    teacher_texts = teacher_images + 2.0 * rng.standard_normal((PAIRS, TEACHER_WIDTH))
    every = {"images": images, "texts": texts, "teacher_images": teacher_images, "teacher_texts": teacher_texts}
    return {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in every.items()}


def inputs(rank: int, world: int, kind: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What learns of process `rank` (its share of pairs, scale, bias), and the teacher's features."""
    mine = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)
    parts = {name: torch.tensor(rows[mine], dtype=kind) for name, rows in features().items()}
    teacher = {name: parts.pop(name) for name in ("teacher_images", "teacher_texts")}
    parts |= {"scale": torch.tensor(SCALE, dtype=kind), "bias": torch.tensor(BIAS, dtype=kind)}
    return {name: part.requires_grad_() for name, part in parts.items()}, teacher


def variants(teacher: dict[str, Tensor]) -> dict[str, Callable[[dict[str, Tensor]], Tensor]]:
    """Every loss by name, as a function of what learns."""
    made: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {}
    for chunk in CHUNKS:
        tail = "" if chunk is None else ".chunk"
        for gather in GATHERS:
            for full in (False, True) if gather != "local" else (False,):
                name = f"{gather}.{'full' if full else 'own'}{tail}"
                options = {"gather": gather, "full": full, "chunk": chunk}
                made[f"clip.{name}"] = lambda x, o=options: contrastive_loss(x["images"], x["texts"], x["scale"], **o)
                made[f"distill.{name}"] = lambda x, o=options: distill_loss(
                    x["images"], x["texts"], x["scale"], teacher["teacher_images"], teacher["teacher_texts"],
                    TEACHER_SCALE, **o,
                ).distill  # fmt: skip
        for exchange in EXCHANGES:
            options = {"exchange": exchange, "chunk": chunk}
            made[f"siglip.{exchange}{tail}"] = lambda x, o=options: sigmoid_loss(
                x["images"], x["texts"], x["scale"], x["bias"], **o
            )
    return made


def with_gradients(rank: int, world: int, make: Callable = variants, kinds=(torch.float32, torch.float64)) -> Found:
    """Value and gradients of every variant on this process."""
    found: Found = {}
    for kind in kinds:
        for name in make(inputs(rank, world, kind)[1]):
            learned, teacher = inputs(rank, world, kind)
            value = make(teacher)[name](learned)
            value.backward()
            key = f"{world}.{str(kind).removeprefix('torch.')}.{name}"
            found[f"{key}.{rank}.value"] = value.detach().numpy()
            for leaf, tensor in learned.items():
                if tensor.grad is not None:
                    found[f"{key}.{rank}.{leaf}"] = tensor.grad.numpy()
    return found


def halves(rank: int, world: int) -> Found:
    """Each half of the processes compares its pairs only; then one process brings fewer pairs than the others."""
    found: Found = {}
    groups = [distributed.new_group(list(range(start, start + world // 2))) for start in (0, world // 2)]
    group = groups[2 * rank // world]
    for name, call in (
        ("clip", lambda x: contrastive_loss(x["images"], x["texts"], x["scale"], group=group)),
        *(
            (e, lambda x, e=e: sigmoid_loss(x["images"], x["texts"], x["scale"], x["bias"], group=group, exchange=e))
            for e in EXCHANGES
        ),
    ):
        learned, _ = inputs(rank, world, torch.float64)
        value = call(learned)
        value.backward()
        found[f"halves.{name}.{rank}.value"] = value.detach().numpy()
        found[f"halves.{name}.{rank}.images"] = learned["images"].grad.numpy()
    for name, call in (
        ("clip", lambda x: contrastive_loss(x["images"], x["texts"], x["scale"])),
        ("bidir", lambda x: sigmoid_loss(x["images"], x["texts"], x["scale"], x["bias"])),
    ):
        learned, _ = inputs(rank, world, torch.float64)
        call({**learned, "images": learned["images"].detach()}).backward()
        found[f"locked.{name}.{rank}.texts"] = learned["texts"].grad.numpy()
        learned, _ = inputs(rank, world, torch.float64)
        fewer = {k: v[: len(v) - (rank == 1)] if v.ndim else v for k, v in learned.items()}
        try:
            call(fewer)
        except InputError as error:
            found[f"uneven.{name}.{rank}"] = np.array(str(error))
    return found


def on_ranks(compute: Callable[[int, int], Found], world: int) -> Found:
    """What `compute(rank, world)` returns in each of `world` processes, together."""
    with tempfile.TemporaryDirectory() as folder:
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=_worker, args=(compute, rank, world, folder)) for rank in range(world)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(300)
        if any(worker.exitcode for worker in workers):
            for worker in workers:
                worker.kill()
            raise SystemExit(f"exit codes {[worker.exitcode for worker in workers]}")
        return {k: v for rank in range(world) for k, v in np.load(Path(folder, f"{rank}.npz")).items()}


def _worker(compute: Callable[[int, int], Found], rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/meet", world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    np.savez(Path(folder, f"{rank}.npz"), **compute(rank, world))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    result: Found = {}
    for world in WORLDS:
        result |= on_ranks(with_gradients, world)
    result |= on_ranks(halves, WORLDS[-1])
    np.savez(sys.argv[1], **result)
