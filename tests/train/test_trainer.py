"""The loop over a run: learning, resuming, stopping, and what lies in the folder afterwards."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal.core.errors import ConfigError
from foveal.data.augment import Augmentation
from foveal.train.checkpoint import Checkpoints, read_rows
from foveal.train.loop import DivergedError
from foveal.train.replay import replay
from foveal.train.run import Run
from foveal.train.task import NextToken
from foveal.train.trainer import step_seed, train
from tests.helpers import training


def losses(folder: Path, name: str = "toy") -> list[float]:
    return [float(str(row["loss"])) for row in read_rows(folder / name / "log.jsonl") if "loss" in row]


def weights(run: Run, name: str = "toy") -> dict[str, torch.Tensor]:
    found = Checkpoints(run.folder / name, name).newest()
    assert found is not None
    return found[0]


def test_a_run_learns_logs_and_exports(tmp_path: Path) -> None:
    seen = []
    run = training.run(tmp_path, training.stage(steps=8, trainable=(("*", 5e-3),)))
    train(run, report=seen.append)
    found = losses(tmp_path)
    assert len(found) == 8 and found[-1] < 0.85 * found[0]
    row = read_rows(tmp_path / "toy" / "log.jsonl")[-1]
    assert {"tokens_per_s", "images_per_s", "mfu", "memory_gb", "rate", "norm"} <= row.keys()
    assert row["padding"] == 0.0 and row["samples"] == 6 and int(str(row["packs"])) > 1
    assert [p.step for p in seen] == list(range(1, 9)) and seen[-1].loss == found[-1]
    vlm = foveal.load(tmp_path / "toy" / "model", device="cpu")
    pack = vlm.process([{"role": "user", "content": "What comes after one?"}])
    assert math.isfinite(float(vlm.forward(pack).logits.sum().detach()))
    kept = weights(run)
    for name, parameter in vlm.network.named_parameters():
        assert torch.equal(parameter, kept[f"master/{name}"])
    # Nothing is left to do, and nothing is written twice.
    train(run)
    assert losses(tmp_path) == found


class Stopped(Exception):
    pass


def stop_at(step: int) -> Any:
    def report(progress: Any) -> None:
        if progress.step == step:
            raise Stopped

    return report


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_run_goes_on_exactly(tmp_path: Path, dtype: Any) -> None:
    stages = (
        training.stage(steps=4, dtype=dtype, average=0.9),
        training.stage(name="next", steps=2, dtype=dtype, seed=5),
    )
    whole, parts = training.run(tmp_path / "whole", *stages), training.run(tmp_path / "parts", *stages)
    train(whole)
    with pytest.raises(Stopped):
        train(parts, report=stop_at(4))
    train(parts)
    for name in ("toy", "next"):
        assert losses(whole.folder, name) == losses(parts.folder, name)
        for key, tensor in weights(whole, name).items():
            assert torch.equal(tensor, weights(parts, name)[key]), key


def test_augmented_samples_are_the_same_after_a_stop_and_with_workers(tmp_path: Path) -> None:
    augmentation = Augmentation(flip=0.5, crop=(0.5, 1.0), jitter=0.3)
    plain, changed = training.stage(steps=4), training.stage(steps=4, augment=augmentation)
    for name, stage in (("plain", plain), ("whole", changed)):
        train(training.run(tmp_path / name, stage))
    parts = training.run(tmp_path / "parts", changed, workers=2)
    with pytest.raises(Stopped):
        train(parts, report=stop_at(3))
    train(parts)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole") != losses(tmp_path / "plain")


def test_workers_change_nothing(tmp_path: Path) -> None:
    stage = training.stage(steps=3)
    for workers in (0, 2):
        train(training.run(tmp_path / str(workers), stage, workers=workers))
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_packs_change_the_loss_by_rounding_only(tmp_path: Path) -> None:
    for room in (120, 100_000):
        train(training.run(tmp_path / str(room), training.stage(steps=3, max_tokens=room)))
    small, large = losses(tmp_path / "120"), losses(tmp_path / "100000")
    assert small == pytest.approx(large, rel=2e-5)  # worst seen: 3e-7 in the first, 2e-6 in the third step
    rows = [read_rows(tmp_path / room / "toy" / "log.jsonl") for room in ("120", "100000")]
    assert int(str(rows[0][0]["packs"])) >= 3 and rows[1][0]["packs"] == 1


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    for on in (False, True):
        run = training.run(tmp_path / str(on), training.stage(steps=3, checkpointing=on))
        network = train(run).network
        assert "forward" not in vars(network.language.layers[0])
    assert losses(tmp_path / "False") == losses(tmp_path / "True")


def test_checkpoints_are_kept_by_policy_and_damaged_ones_passed_over(tmp_path: Path) -> None:
    run = training.run(tmp_path, training.stage(steps=6, save_every=1, keep_last=2, keep_every=3))
    train(run)
    files = Checkpoints(tmp_path / "toy", "toy")
    assert files.steps() == [3, 5, 6]
    expected = losses(tmp_path)
    path = files.path(6)
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "toy" / "step-00000099.safetensors.part").write_bytes(b"half")
    found = files.newest()
    assert found is not None and found[1]["step"] == "5"
    train(run)
    assert losses(tmp_path) == expected


def test_another_batch_is_no_continuation(tmp_path: Path) -> None:
    train(training.run(tmp_path, training.stage(steps=3)))
    with pytest.raises(ConfigError, match=r"made with batch = 6, now it is 5"):
        train(training.run(tmp_path, training.stage(steps=6, batch=5)))


def poisoned(only: str = "toy-find:4") -> Any:
    """A task whose loss is not a number where one sample is in the pack; pictures tell it."""

    class Poisoned(NextToken):
        def read(self, processor: Any, sample: Any, stage: Any) -> Any:
            piece = super().read(processor, sample, stage)
            if f"{sample.set}:{sample.id}" == only:
                piece = replace(piece, patches=piece.patches * float("inf"))
            return piece

    return Poisoned()


def test_the_first_loss_that_is_not_finite_stops_and_can_be_replayed(tmp_path: Path) -> None:
    run = training.run(tmp_path, training.stage(steps=12, task=poisoned()))
    with pytest.raises(DivergedError, match=r"toy-find:4.*--replay"):
        train(run)
    (file,) = (tmp_path / "toy").glob("replay-*.json")
    values = json.loads(file.read_text())
    assert "toy-find:4" in values["samples"] and values["step"] == len(losses(tmp_path))
    found = replay(file, run)
    assert found.reproduced and [name for name, _ in found.samples] == ["toy-find:4"]
    assert found.module == "vision.patch"
    # With a clean sample the same file runs through.
    clean = replay(file, training.run(tmp_path, training.stage(steps=12)))
    assert not clean.reproduced and clean.samples == () and clean.norm is not None


def test_gradients_that_are_not_finite_stop_too(tmp_path: Path) -> None:
    def adapt(loaded: Any) -> None:
        loaded.network.language.norm.weight.register_hook(lambda g: g * float("nan"))

    run = training.run(tmp_path, adapt=adapt)
    with pytest.raises(DivergedError, match="gradient's norm is nan"):
        train(run)
    found = replay(next((tmp_path / "toy").glob("replay-*.json")), run)
    assert found.reproduced and found.parameters == ("language.norm.weight",)


def test_in_float16_an_overflow_halves_the_scale_and_skips_the_step(tmp_path: Path) -> None:
    calls = []

    def adapt(loaded: Any) -> None:
        def overflow(g: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return g * float("inf") if len(calls) == 1 else g

        loaded.network.language.norm.weight.register_hook(overflow)

    run = training.run(tmp_path, training.stage(dtype="fp16", max_tokens=10_000), adapt=adapt)
    train(run)
    assert weights(run)["scale"].tolist() == [2.0**15, 5.0]
    found = losses(tmp_path)
    assert found[0] != found[1]  # other samples
    assert len(found) == 6 and found[-1] < found[0]


def test_ctrl_c_saves_and_leaves(tmp_path: Path) -> None:
    def interrupt(progress: Any) -> None:
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    whole, parts = training.run(tmp_path / "whole"), training.run(tmp_path / "parts")
    train(whole)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(parts, report=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert Checkpoints(tmp_path / "parts" / "toy", "toy").steps() == [3, 5]
    train(parts)
    assert losses(whole.folder) == losses(parts.folder)


def test_evaluation_is_logged_and_in_evaluation_mode(tmp_path: Path) -> None:
    def evaluate(loaded: Any, step: int) -> dict[str, float]:
        return {"training": float(loaded.network.training), "step": float(step)}

    train(training.run(tmp_path, training.stage(eval_every=4), evaluate=evaluate))
    rows = [row["evaluation"] for row in read_rows(tmp_path / "toy" / "log.jsonl") if "evaluation" in row]
    assert rows == [{"training": 0.0, "step": 4.0}, {"training": 0.0, "step": 6.0}]


def test_random_numbers_belong_to_the_step() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(20) for rank in range(2)}
    assert len(seeds) == 120
    assert step_seed(1, 2, 0) == step_seed(1, 2, 0)


def test_a_frozen_part_stays_and_unfit_samples_are_counted(tmp_path: Path) -> None:
    rules = (("vision.*", 1e-3), ("adapter.*", 1e-3), ("*", False))
    stage = training.stage(steps=4, trainable=rules, max_tokens=55, unfit="skip")
    run = training.run(tmp_path, stage)
    loaded = train(run)
    before = dict(run.load().network.named_parameters())
    changed = {n for n, p in loaded.network.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(n.startswith(("vision.", "adapter.")) for n in changed)
    rows = read_rows(tmp_path / "toy" / "log.jsonl")
    assert all(int(str(row["samples"])) + int(str(row.get("skipped", 0))) == 6 for row in rows)
    assert any("skipped" in row for row in rows)
