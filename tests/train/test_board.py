"""Curves for TensorBoard, read back with its own reader."""

import builtins
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foveal.train.board import Board
from foveal.train.checkpoint import read_rows
from foveal.train.trainer import train
from tests.helpers import training
from tests.train.test_trainer import Stopped, stop_at


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve of a folder: steps and values."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_draws_what_it_logs_and_draws_again_what_it_repeats(tmp_path: Path) -> None:
    def evaluate(loaded: Any, step: int) -> dict[str, float]:
        return {"found": step / 8, "loss": 9.0}

    run = training.run(tmp_path, training.stage(steps=6, save_every=2, eval_every=3), evaluate=evaluate)
    with pytest.raises(Stopped):
        train(run, report=stop_at(5))  # the newest checkpoint is of step 4
    train(run)
    found = curves(tmp_path / "toy")
    rows = [row for row in read_rows(tmp_path / "toy" / "log.jsonl") if "loss" in row]
    assert len(rows) == 6
    for name in ("loss", "norm", "rate", "tokens_per_s", "images_per_s", "padding", "mfu"):
        assert found[name] == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows], name
    assert found["evaluation/found"] == [(3, 0.375), (6, 0.75)]
    assert found["evaluation/loss"] == [(3, 9.0), (6, 9.0)]
    assert "step" not in found


def test_without_tensorboard_a_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with Board(tmp_path, 0) as board:
        board.add({"step": 1, "loss": 2.0})
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path: Path) -> None:
    with Board(None, 0) as board:
        board.add({"step": 1, "loss": 2.0})
    assert list(tmp_path.iterdir()) == []
