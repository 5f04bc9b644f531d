"""Runs that are killed at random points end as if nothing had happened: packing, a mixture, and two workers."""

import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from foveal.train.checkpoint import Checkpoints, read_rows
from foveal.train.run import Run
from foveal.train.trainer import train
from tests.helpers import training

KILLS = int(os.environ.get("KILLS", "4"))
STEPS = 15 + 3 * KILLS
PATIENCE_S = 300
ROOT = Path(__file__).parents[2]


def run_to(folder: Path) -> Run:
    stage = training.stage(steps=STEPS, save_every=2)
    return training.run(folder, stage, workers=2)


def go(folder: str) -> None:
    """What a process of its own does."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    train(run_to(Path(folder)))


def begin(folder: Path) -> subprocess.Popen[bytes]:
    """A fresh interpreter (a fork of one that has computed may wait for its threads for ever), with its workers in a
    group of its own."""
    words = [
        sys.executable,
        "-c",
        "import sys; from tests.train import test_kills as t; t.go(sys.argv[1])",
        str(folder),
    ]
    path = os.pathsep.join(str(ROOT / part) for part in ("src", "."))
    return subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, start_new_session=True
    )


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
    chance, running = random.Random(7), []
    saved = Checkpoints(tmp_path / "killed" / "toy", "toy")
    try:
        running.append(first := begin(tmp_path / "whole"))
        for _ in range(KILLS):
            goal = max([0, *saved.steps()]) + chance.choice((0, 2, 2, 4))
            running.append(process := begin(tmp_path / "killed"))
            deadline = time.monotonic() + PATIENCE_S
            while process.poll() is None and max([0, *saved.steps()]) < goal:
                assert time.monotonic() < deadline, f"no checkpoint of step {goal} within {PATIENCE_S} s"
                time.sleep(0.005)
            time.sleep(chance.random() * 0.2)  # within a step, a line of the log, or a checkpoint
            assert process.poll() is None
            process.kill()
            process.wait()
        deadline = time.monotonic() + 30
        while left := [pid for process in running[1:] for pid in members(process.pid)]:
            assert time.monotonic() < deadline, f"workers outlive their process: {left}"
            time.sleep(0.2)
        running.append(last := begin(tmp_path / "killed"))
        assert (first.wait(PATIENCE_S), last.wait(PATIENCE_S)) == (0, 0)
    finally:
        for process in running:
            process.kill()
    expected = losses(tmp_path / "whole")
    assert len(expected) == STEPS and losses(tmp_path / "killed") == expected
    whole, killed = (Checkpoints(tmp_path / name / "toy", "toy").newest() for name in ("whole", "killed"))
    assert whole is not None and killed is not None
    for key, tensor in whole[0].items():
        assert torch.equal(tensor, killed[0][key]), key
