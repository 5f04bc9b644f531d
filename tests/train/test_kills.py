"""Runs that are killed at random points end as if nothing had happened: packing, a mixture, and two workers."""

import logging
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
import torch
import torch._dynamo

from foveal.train.checkpoint import Checkpoints, read_rows
from foveal.train.run import Run
from foveal.train.trainer import train
from tests.helpers import training

KILLS = int(os.environ.get("KILLS", "4"))
STEPS = 15 + 3 * KILLS


def run_to(folder: Path) -> Run:
    stage = training.stage(steps=STEPS, save_every=2)
    return training.run(folder, stage, workers=2)


def go(folder: Path) -> None:
    """In a process of its own, whose group holds its workers too."""
    os.setsid()
    logging.disable(logging.WARNING)
    train(run_to(folder))


def members(group: int) -> list[int]:
    """Processes of a group, from /proc where there is one; those that ended and were not waited for do not count."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def losses(folder: Path) -> list[object]:
    return [row["loss"] for row in read_rows(folder / "toy" / "log.jsonl")]


@pytest.mark.slow
def test_killed_runs_end_with_the_same_losses(tmp_path: Path) -> None:
    """KILLS=20 was run once, with the same result."""
    chance, context = random.Random(7), multiprocessing.get_context("fork")
    # A process forks well only as long as it has computed no gradient; what children would import is there already.
    first = context.Process(target=go, args=(tmp_path / "whole",))
    first.start()
    saved, groups = Checkpoints(tmp_path / "killed" / "toy", "toy"), []
    for _ in range(KILLS):
        goal = max([0, *saved.steps()]) + chance.choice((0, 2, 2, 4))
        process = context.Process(target=go, args=(tmp_path / "killed",))
        process.start()
        while process.is_alive() and max([0, *saved.steps()]) < goal:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.2)  # within a step, a line of the log, or a checkpoint
        assert process.is_alive()
        process.kill()
        process.join()
        groups.append(process.pid or 0)
    deadline = time.monotonic() + 30
    while left := [pid for group in groups for pid in members(group)]:
        assert time.monotonic() < deadline, f"workers outlive their process: {left}"
        time.sleep(0.2)
    process = context.Process(target=go, args=(tmp_path / "killed",))
    process.start()
    process.join()
    first.join()
    assert (first.exitcode, process.exitcode) == (0, 0)
    expected = losses(tmp_path / "whole")
    assert len(expected) == STEPS and losses(tmp_path / "killed") == expected
    whole, killed = (Checkpoints(tmp_path / name / "toy", "toy").newest() for name in ("whole", "killed"))
    assert whole is not None and killed is not None
    for key, tensor in whole[0].items():
        assert torch.equal(tensor, killed[0][key]), key
