"""Stages, the optimizer's float32 weights, checkpoints and the loop."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from foveal.core.errors import ConfigError, WeightsError
from foveal.train.checkpoint import read_checkpoint, write_checkpoint
from foveal.train.loop import DivergedError, run
from foveal.train.optim import MasterAdamW
from foveal.train.stage import Stage

EVERYTHING = (("*", 1e-2),)


def a_stage(**changes: object) -> Stage:
    values = {"name": "toy", "steps": 20, "batch": 4, "trainable": EVERYTHING, "warmup": 2, "save_every": 10}
    return Stage(**{**values, "log_every": 5, **changes})  # type: ignore[arg-type]


def a_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))


def samples(first: int):  # type: ignore[no-untyped-def]
    """Endless batches; batch number s is always the same."""
    for step in itertools.count(first):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 8, generator=generator)
        yield x, x.sum(1, keepdim=True)


def test_rates_follow_the_first_matching_pattern() -> None:
    named = [("vision.a", 1), ("vision.norm", 2), ("language.b", 3)]
    stage = a_stage(trainable=(("vision.norm", None), ("vision.*", 1e-3), ("language.*", 2e-3)))
    assert stage.rates(named) == [("vision.a", 1, 1e-3), ("language.b", 3, 2e-3)]
    with pytest.raises(ConfigError, match=r"no rule says whether 'language\.b'"):
        a_stage(trainable=(("vision.*", 1e-3),)).rates(named)
    with pytest.raises(ConfigError, match="no parameter matches 'adapter"):
        a_stage(trainable=(("adapter.*", 1.0), ("*", 1e-3))).rates(named)
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        a_stage(trainable=(("*", None),)).rates(named)


def test_rate_rises_then_falls_to_the_floor() -> None:
    stage = a_stage(steps=100, warmup=10, floor=0.1)
    factors = [stage.factor(s) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)
    with pytest.raises(ConfigError, match="warmup"):
        a_stage(warmup=30)
    with pytest.raises(ConfigError, match="batch"):
        a_stage(batch=0)


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([("w", parameter, 1e-4)], weight_decay=0.0, betas=(0.9, 0.98))
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step(1.0, clip=100.0)
    # One hundred steps of 0.0001; in bfloat16 alone each would round back to 1.
    assert optimizer.masters[0].mean().item() == pytest.approx(0.99, abs=1e-4)
    assert parameter.float().mean().item() == pytest.approx(0.99, abs=4e-3)


def test_average_follows_the_weights() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = MasterAdamW([("w", parameter, 1e-2)], weight_decay=0.0, betas=(0.9, 0.98), average=0.9)
    seen = []
    for _ in range(200):
        parameter.grad = torch.full_like(parameter, -1.0)
        optimizer.step(1.0, clip=100.0)
        seen.append(parameter[0, 0].item())
    mean = optimizer.state()["average/w"][0, 0].item()
    assert seen[-20] < mean < seen[-1]


def test_norm_is_that_before_clipping() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = MasterAdamW([("w", parameter, 1e-2)], weight_decay=0.0, betas=(0.9, 0.98))
    parameter.grad = torch.tensor([3.0, 4.0, 0.0])
    assert optimizer.step(1.0, clip=1.0) == pytest.approx(5.0)


def loss_of(network: nn.Module):  # type: ignore[no-untyped-def]
    def loss(batch):  # type: ignore[no-untyped-def]
        x, y = batch
        value = (network(x) - y).square().mean()
        return value, {"error": value.item() ** 0.5}

    return loss


def test_training_learns_logs_and_goes_on_exactly(tmp_path: Path) -> None:
    whole = a_network()
    assert run(a_stage(), whole, loss_of(whole), samples, tmp_path / "whole") == 20
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [5, 10, 15, 20]
    assert rows[-1]["loss"] < rows[0]["loss"] and {"norm", "error", "samples_per_s"} <= rows[0].keys()

    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if step == 13:
            raise Stop

    broken = a_network()
    with pytest.raises(Stop):
        run(a_stage(), broken, loss_of(broken), samples, tmp_path / "parts", on_step=stop)
    again = a_network()  # continues from step 10, where the last checkpoint is
    run(a_stage(), again, loss_of(again), samples, tmp_path / "parts")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_tensors_stay(tmp_path: Path) -> None:
    network = a_network()
    before = {n: p.clone() for n, p in network.named_parameters()}
    run(a_stage(trainable=(("0.*", None), ("2.*", 1e-2))), network, loss_of(network), samples, tmp_path)
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"2.weight", "2.bias"}


def test_a_loss_that_is_not_finite_stops_and_names_its_samples(tmp_path: Path) -> None:
    network = a_network()

    def loss(batch):  # type: ignore[no-untyped-def]
        value = network(batch[0]).mean()
        return (value * float("nan") if loss.calls == 6 else value), {"n": tick()}  # type: ignore[attr-defined]

    def tick() -> float:
        loss.calls += 1  # type: ignore[attr-defined]
        return 0.0

    loss.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(DivergedError, match=r"step 6, samples 24 to 27: the loss is nan"):
        run(a_stage(), network, loss, samples, tmp_path)


def test_checkpoints_are_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a" / "last.safetensors"
    write_checkpoint(path, {"x": torch.arange(6.0)}, step=7, stage="toy")
    tensors, step = read_checkpoint(path, stage="toy")
    assert step == 7 and torch.equal(tensors["x"], torch.arange(6.0))
    assert [p.name for p in path.parent.iterdir()] == ["last.safetensors"]
    with pytest.raises(WeightsError, match="of stage 'toy', expected 'other'"):
        read_checkpoint(path, stage="other")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="no readable checkpoint"):
        read_checkpoint(path)


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    network = a_network()
    run(a_stage(steps=10), network, loss_of(network), samples, tmp_path)
    with pytest.raises(WeightsError, match="another stage"):
        other = a_network()
        run(a_stage(trainable=(("0.*", None), ("2.*", 1e-2))), other, loss_of(other), samples, tmp_path)
