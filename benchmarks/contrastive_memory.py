"""Peak memory of logits in the losses of pairs, by number of processes and by pairs.

    OMP_NUM_THREADS=1 python benchmarks/contrastive_memory.py

Measured, not computed: every tensor that an operation makes in forward and backward is watched from its birth to its
end, and those that have an entry a pair (two axes, neither of them a feature's) are added up while they live. The
rows "autograd" are the same losses written in a few lines of ordinary operations, for comparison; there autograd
keeps logits for the backward pass. Writes benchmarks/results/contrastive_memory.md.
"""

import argparse
import math
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveal.train.losses.contrastive import contrastive_loss, distill_loss
from foveal.train.losses.exchange import World, gather, hop
from foveal.train.losses.sigmoid import EXCHANGES, sigmoid_loss

WIDTH, TEACHER_WIDTH = 40, 24
WORLDS = (1, 2, 4)
RESULT = Path(__file__).parent / "results" / "contrastive_memory.md"
Variant = Callable[[Tensor, Tensor, Tensor], Tensor]


class Logits(TorchDispatchMode):
    """Bytes of all tensors with an entry a pair that live at the same time: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.ndim == 2 and not self.features(tensor):
                self.watch(tensor)
        return result

    @staticmethod
    def features(tensor: Tensor) -> bool:
        widths = (1, WIDTH, 2 * WIDTH, TEACHER_WIDTH, 2 * TEACHER_WIDTH)
        return any(length in widths for length in tensor.shape)

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:  # a view, or changed in place
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self.known[key] = weakref.ref(storage, lambda _: self.gone(key, size))

    def gone(self, key: int, size: int) -> None:
        self.now -= size
        del self.known[key]


def variants(teacher: tuple[Tensor, Tensor], chunk: int) -> dict[str, Variant]:
    """Every loss by name. `teacher` holds this process's features of the teacher."""
    made: dict[str, Variant] = {
        "softmax, autograd, own rows": plain_softmax,
        "softmax, autograd, all rows (`full`)": lambda x, y, s: plain_softmax(x, y, s, full=True),
        "sigmoid, autograd, `shift`": plain_sigmoid,
    }
    for size in (None, chunk):
        tail = "" if size is None else f", chunk {size}"
        for how in ("local", "no_grad", "grad"):
            for full in (False, True) if how != "local" else (False,):
                options: dict[str, Any] = {"gather": how, "full": full, "chunk": size}
                name = f'gather="{how}"' + (", full" if full else "") + tail
                made[f"softmax, {name}"] = lambda x, y, s, o=options: contrastive_loss(x, y, s, **o)
        made[f'distillation, gather="grad"{tail}'] = lambda x, y, s, o=size: sum(
            distill_loss(x, y, s, *teacher, 10.0, chunk=o)
        )
        for exchange in EXCHANGES:
            made[f'sigmoid, exchange="{exchange}"{tail}'] = lambda x, y, s, e=exchange, o=size: sigmoid_loss(
                x, y, s, -5.0, exchange=e, chunk=o
            )
    return made


def plain_softmax(images: Tensor, texts: Tensor, scale: Tensor, full: bool = False) -> Tensor:
    world = World.of(None)
    every = gather(world, images, texts) if world.size > 1 else (images, texts)
    rows, first = (every, 0) if full else ((images, texts), world.rank * len(images))
    logits = scale * rows[0] @ every[1].T, scale * rows[1] @ every[0].T
    labels = first + torch.arange(len(rows[0]))
    return (F.cross_entropy(logits[0], labels) + F.cross_entropy(logits[1], labels)) / 2


def plain_sigmoid(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    world, total, signs = World.of(None), torch.zeros(()), 2 * torch.eye(len(images)) - 1
    for step in range(world.size):
        total = total - F.logsigmoid(signs * (scale * images @ texts.T - 5.0)).sum()
        if step + 1 < world.size:
            (texts,) = hop(world, (1,), texts)
            signs = -torch.ones_like(signs)
    return total / len(images)


def measured(rank: int, pairs: int, chunk: int) -> dict[str, int]:
    """Peak bytes of every variant on this process, which has `pairs` pairs."""
    generator = torch.Generator().manual_seed(rank)
    widths = (WIDTH, WIDTH, TEACHER_WIDTH, TEACHER_WIDTH)
    rows = [F.normalize(torch.randn(pairs, width, generator=generator), dim=-1) for width in widths]
    found = {}
    for name, loss in variants((rows[2], rows[3]), chunk).items():
        images, texts = (r.clone().requires_grad_() for r in rows[:2])
        scale = torch.tensor(10.0, requires_grad=True)
        with Logits() as logits:
            loss(images, texts, scale).backward()
        if images.grad is None or not torch.isfinite(images.grad).all():
            raise SystemExit(f"{name}: no finite gradient")
        found[name] = logits.peak
    return found


def on_ranks(world: int, pairs: int, chunk: int) -> dict[str, int]:
    """The largest peak of any process."""
    with tempfile.TemporaryDirectory() as folder:
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=_worker, args=(r, world, pairs, chunk, folder)) for r in range(world)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise SystemExit(f"exit codes {[worker.exitcode for worker in workers]}")
        every = [dict(np.load(Path(folder, f"{rank}.npz"))) for rank in range(world)]
        return {name: max(int(found[name]) for found in every) for name in every[0]}


def _worker(rank: int, world: int, pairs: int, chunk: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/meet", world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    np.savez(Path(folder, f"{rank}.npz"), **measured(rank, pairs, chunk))
    distributed.barrier()
    distributed.destroy_process_group()


def megabytes(size: int) -> str:
    value = size / 2**20
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=512, help="pairs of each process (default: 512)")
    parser.add_argument("--chunk", type=int, default=128, help="side of a block (default: 128)")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    columns = [(world, options.pairs) for world in WORLDS] + [(1, 2 * options.pairs), (1, 4 * options.pairs)]
    found = [on_ranks(world, pairs, options.chunk) for world, pairs in columns]
    heads = [f"{world} x {pairs}" for world, pairs in columns]
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    lines = [
        "# Peak memory of logits in the losses of pairs",
        "",
        "MB (2^20 bytes) of all tensors with an entry a pair that live at the same time in forward and backward, in",
        "the process with most of them. Columns: processes x pairs of each. float32. Rows `autograd`: the loss in some",
        "plain operations, for comparison; autograd keeps their logits for the backward pass.",
        "",
        "    OMP_NUM_THREADS=1 python benchmarks/contrastive_memory.py",
        "",
        f"Commit {commit}, {time.strftime('%Y-%m-%d')}. gloo on one machine, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}. {options.pairs} pairs, blocks of {options.chunk}.",
        "",
        f"| loss | {' | '.join(heads)} |",
        "|---|" + "---:|" * len(heads),
        *(f"| {name} | {' | '.join(megabytes(column[name]) for column in found)} |" for name in found[0]),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
