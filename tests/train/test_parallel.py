"""Runs on several processes: who joins, and that they learn what one process learns from the same samples."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foveal.core.errors import ConfigError
from foveal.train.checkpoint import Checkpoints, read_rows
from foveal.train.parallel import chosen_device, together
from tests.helpers import training

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def launched(monkeypatch: pytest.MonkeyPatch, world: int | str, rank: int = 0) -> None:
    for name, value in zip(ENVIRONMENT, (rank, rank, world), strict=True):
        monkeypatch.setenv(name, str(value))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_a_process_trains_alone(tmp_path: Path) -> None:
    for parallel in (None, "ddp", "fsdp"):
        with together(training.run(tmp_path, parallel=parallel)) as ranks:
            assert (ranks.rank, ranks.world, ranks.first, ranks.joined) == (0, 1, True, False)


def test_several_processes_need_a_parallel_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training.run(tmp_path)
    launched(monkeypatch, 1)
    assert chosen_device(run) == torch.device("cpu")
    launched(monkeypatch, 4)
    with (
        pytest.raises(ConfigError, match=r"torchrun started 4 processes, but .* Add --set parallel=ddp"),
        together(run),
    ):
        pass
    assert chosen_device(replace(run, parallel="ddp")) == torch.device("cpu")
    launched(monkeypatch, "many")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 'many', expected a whole number"):
        chosen_device(run)


def test_each_process_of_a_machine_has_its_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training.run(tmp_path, parallel="fsdp", device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launched(monkeypatch, 4, rank=1)
    assert chosen_device(run) == torch.device("cuda", 1)
    launched(monkeypatch, 4, rank=2)
    with pytest.raises(ConfigError, match=r"process 3 of this machine, which has 2 GPUs; use --nproc-per-node 2\."):
        chosen_device(run)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="which has 0 GPUs; add --set device=cpu"):
        chosen_device(run)
    with pytest.raises(ConfigError, match="cannot share the device"):
        chosen_device(replace(run, device="mps"))


def test_what_parallel_can_be(tmp_path: Path) -> None:
    run = training.run(tmp_path).changed({"parallel": "fsdp", "log_samples": True})
    assert (run.parallel, run.log_samples) == ("fsdp", True)
    with pytest.raises(ConfigError, match=r'Run\.parallel is \'zero\'; expected "ddp", "fsdp", or None'):
        training.run(tmp_path, parallel="zero")
    with pytest.raises(ConfigError, match=r"Run\.log_samples is 1; expected true or false"):
        training.run(tmp_path, log_samples=1)


# What follows runs two processes.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every run of `tests/helpers/parallel_runs.py`."""
    folder: Path = tmp_path_factory.mktemp("parallel")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / "tests/helpers/parallel_runs.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def figures(folder: Path, name: str, stage: str = "toy") -> np.ndarray:
    """Loss and norm of the gradient of every step [S, 2]."""
    rows = read_rows(folder / name / stage / "log.jsonl")
    return np.array([[row["loss"], row["norm"]] for row in rows if "loss" in row], dtype=np.float64)


def learned(folder: Path, name: str, stage: str = "toy") -> dict[str, torch.Tensor]:
    """All of the last checkpoint."""
    found = Checkpoints(folder / name / stage, stage).newest()
    assert found is not None
    return found[0]


def samples(folder: Path, name: str) -> list[Counter[str]]:
    """The samples of every step, from the files of all processes."""
    steps: dict[int, Counter[str]] = {}
    for file in (folder / name / "toy").glob("samples-*.jsonl"):
        for row in read_rows(file):
            steps.setdefault(int(str(row["step"])), Counter()).update(row["samples"])  # type: ignore[arg-type]
    assert sorted(steps) == list(range(1, len(steps) + 1))
    return [steps[step] for step in sorted(steps)]


def assert_same(folder: Path, one: str, other: str, stage: str = "toy") -> None:
    a, b = figures(folder, one, stage), figures(folder, other, stage)
    assert len(a) > 1
    np.testing.assert_allclose(b[:, 0], a[:, 0], rtol=1e-6)  # worst seen: 1.7e-7
    np.testing.assert_allclose(b[:, 1], a[:, 1], rtol=4e-5)  # 1.3e-7; in shards 7.6e-6, where it is summed in float64
    mine, theirs = learned(folder, one, stage), learned(folder, other, stage)
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert tensor.shape == theirs[key].shape, key
        if key.startswith(("master/", "average/")):  # worst seen: 9.4e-6 at rates of 2e-3
            torch.testing.assert_close(
                theirs[key], tensor, rtol=0, atol=4e-5, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(made: Path, name: str) -> None:
    assert_same(made, "alone", name)
    assert samples(made, "alone") == samples(made, name)
    each = [len(row["samples"]) for row in read_rows(made / name / "toy" / "samples-1.jsonl")]  # type: ignore[arg-type]
    assert each == [3] * 4


@pytest.mark.slow
def test_a_run_moves_from_one_process_to_two_and_back(made: Path) -> None:
    """One process, two with shards, one with shards, two without: no sample is lost or repeated."""
    assert_same(made, "alone", "moved")
    assert samples(made, "moved") == samples(made, "alone")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["halves-ddp", "halves-fsdp"])
def test_text_alone_on_one_process_waits_for_no_picture(made: Path, name: str) -> None:
    """The helper has a time limit: processes that wait for each other in vain are an error."""
    rows = [read_rows(made / name / "toy" / f"samples-{rank}.jsonl") for rank in (0, 1)]
    assert all(str(s).startswith("toy-text:") for row in rows[0] for s in row["samples"])  # type: ignore[attr-defined]
    assert all(str(s).startswith("toy-find:") for row in rows[1] for s in row["samples"])  # type: ignore[attr-defined]
    assert_same(made, "halves-alone", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experts-ddp", "experts-fsdp"])
def test_experts_that_one_process_does_not_use(made: Path, name: str) -> None:
    """DeepSeek-VL2, one sample a process; its loss of balance counts no empty picture."""
    assert_same(made, "experts-alone", name)


@pytest.mark.slow
def test_stages_and_evaluation_in_shards(made: Path) -> None:
    for stage in ("toy", "next"):  # the second learns what the first kept frozen
        assert_same(made, "part-alone", "part-fsdp", stage)
        one, other = (
            read_rows(made / name / stage / "log.jsonl")[-1]["evaluation"] for name in ("part-alone", "part-fsdp")
        )
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_in_bfloat16_shards_add_up_in_float32(made: Path) -> None:
    a, b = figures(made, "bf16-alone"), figures(made, "bf16-fsdp")
    np.testing.assert_allclose(b, a, rtol=2e-3)  # worst seen: 1e-5 of the loss, 1.8e-4 of the norm


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_export_is_whole_and_in_the_published_layout(made: Path, name: str) -> None:
    one, other = made / "alone" / "toy" / "model", made / name / "toy" / "model"
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert mine.keys() == theirs.keys() and "visual.patch_embed.proj.weight" in mine
    for key, tensor in mine.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=4e-5)
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())


@pytest.mark.slow
def test_every_process_says_that_the_run_is_not_parallel(made: Path) -> None:
    for rank in (0, 1):
        assert "torchrun started 2 processes" in (made / f"not-parallel-{rank}.error").read_text()
    assert not (made / "not-parallel").exists()


RECIPE = """
from pathlib import Path
from foveal.train.run import Run
from tests.helpers import training

def run(out: Path) -> Run:
    return training.run(out, training.stage(steps=2, save_every=2))
"""


@pytest.mark.slow
def test_torchrun_trains_a_recipe(tmp_path: Path) -> None:
    recipe, out = tmp_path / "toy.py", tmp_path / "out"
    recipe.write_text(RECIPE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "foveal", "train", str(recipe), "--set", f"out={out}", "parallel=fsdp"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out / "toy" / "model")]
    assert len(figures(tmp_path, "out")) == 2 and (out / "toy" / "model" / "model.safetensors").exists()
