"""Training on many processes, which torchrun starts: who joins, on which device, and how they part.

    torchrun --nproc-per-node 2 -m foveal train RECIPE --set parallel=ddp

torchrun sets WORLD_SIZE, RANK and LOCAL_RANK. Without it a process trains alone, whatever `Run.parallel` says.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from torch import distributed

from foveal.core.errors import ConfigError
from foveal.engine.model import default_device
from foveal.train.loop import DivergedError
from foveal.train.ranks import Ranks
from foveal.train.run import Run
from foveal.train.sharded import ShardedRanks

log = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: reading a large model, or a pass of evaluation by the first, takes long."""


@contextlib.contextmanager
def together(run: Run) -> Iterator[Ranks]:
    """The processes that take a run together; inside, they can reach each other.

    Raises:
        ConfigError: several processes were started and the run is not parallel, or there are too few devices.
    """
    if distributed.is_available() and distributed.is_initialized():  # by the caller, who also ends it
        yield _ranks(run, torch.device(run.device or default_device()))
        return
    device = chosen_device(run)
    if not launched() or run.parallel is None:
        if run.parallel is not None:
            log.info('parallel="%s": this process was not started by torchrun and trains alone', run.parallel)
        yield Ranks(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    agreed = False
    try:
        yield _ranks(run, device)
        agreed = True
    except DivergedError:
        agreed = True  # all saw it
        raise
    finally:
        # Processes that leave at different times abort each other. After an error of its own a process must not wait,
        # or the others would never hear of it: it leaves, and torchrun ends them.
        if agreed:
            distributed.barrier()
            distributed.destroy_process_group()


def _ranks(run: Run, device: torch.device) -> Ranks:
    return ShardedRanks(device) if run.parallel == "fsdp" else Ranks(device)


def launched() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def chosen_device(run: Run) -> torch.device:
    """Where this process computes: each process of a machine has an accelerator of its own, by its local rank."""
    device = torch.device(run.device or default_device())
    world = _number("WORLD_SIZE") if launched() else 1
    if world == 1:
        return device
    if run.parallel is None:
        raise ConfigError(
            f"torchrun started {world} processes, but the run is not parallel: each would train the same alone. "
            "Add --set parallel=ddp (or parallel=fsdp, for models that are too large for one device), or start it "
            "without torchrun."
        )
    if device.type == "mps":
        if run.device is not None:
            raise ConfigError('processes cannot share the device "mps"; use --set device=cpu.')
        return torch.device("cpu")
    if device.type == "cuda":
        local, count = _number("LOCAL_RANK"), torch.cuda.device_count()
        if local >= count:
            raise ConfigError(
                f"torchrun started process {local + 1} of this machine, which has {count} GPUs; "
                + (f"use --nproc-per-node {count}." if count else "add --set device=cpu.")
            )
        return torch.device("cuda", local)
    return device


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdigit():
        raise ConfigError(f"the environment variable {name} is {text!r}, expected a whole number; torchrun sets it.")
    return int(text)
