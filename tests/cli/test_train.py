"""`foveal train`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from foveal.cli.main import main
from foveal.train.checkpoint import Checkpoints, read_rows

RECIPE = """
from pathlib import Path
from tests.helpers import training
from foveal.train.run import Run

def run(size: str = "tiny", steps: int = 3, poison: bool = False, out: Path = Path({out!r})) -> Run:
    task = None
    if poison:
        from tests.train.test_trainer import poisoned
        task = poisoned()
    stages = training.stage(name="one", steps=steps, task=task), training.stage(name="two", steps=2)
    return training.run(out, *stages)
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(out=str(tmp_path / "out")))
    return str(path)


def losses(folder):
    return [row["loss"] for row in read_rows(folder / "log.jsonl") if "loss" in row]


def test_a_recipe_is_run_and_drawn(recipe, tmp_path, capsys):
    assert main(["train", recipe, "--set", "steps=2", "two.steps=1", "two.warmup=1", "train.save_every=1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "out" / name / "model") for name in ("one", "two")]
    assert "one 2/2 [########################] loss " in err and "padding 0%" in err and "tokens/s" in err
    assert len(losses(tmp_path / "out" / "one")) == 2 and len(losses(tmp_path / "out" / "two")) == 1
    assert main(["train", recipe, "--set", "steps=2", "--plot", str(tmp_path / "c.png")]) == 0
    assert "loss, norm, rate, tokens_per_s" in capsys.readouterr().out
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size == (900, 4 * 260) and len(picture.getcolors(10**6)) > 4


def test_settings_reach_the_stages(recipe, capsys):
    assert main(["train", recipe, "--dry-run", "--json", "--set", "train.rate=1e-4", "one.batch=4"]) == 0
    one, two = json.loads(capsys.readouterr().out)["stages"]
    assert one["rate"] == two["rate"] == pytest.approx(1e-4)
    assert (one["batch"], two["batch"]) == (4, 6)


def test_a_dry_run_says_what_would_be_done(recipe, tmp_path, capsys):
    assert main(["train", recipe, "--dry-run", "--set", 'one.trainable=[["vision.*", 1e-3], ["*", false]]']) == 0
    out = capsys.readouterr().out
    first = out.partition("stage two")[0]
    assert "stage one: 3 steps of 6 samples, cosine from 0.001, fp32" in first
    rows = {line.split()[0]: line.split()[1:] for line in first.splitlines() if line.startswith("  ") and line.strip()}
    assert rows["vision"][2] == "100%" and rows["language"][1:] == ["0", "0%"]
    assert "tokens a sample" in first and "memory" in first
    assert not (tmp_path / "out").exists()


def test_augmentation_is_set_and_shown(recipe, capsys):
    words = ["train.augment.flip=0.5", "one.augment.crop=[0.6, 1]", "two.augment=null", "train.pixels.min_px=1600"]
    assert main(["train", recipe, "--dry-run", "--set", *words]) == 0
    one, _, two = capsys.readouterr().out.partition("stage two")
    assert "  pictures change by  flip 0.5, crop 0.6 to 1\n" in one
    assert "pictures change by" not in two


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("train.augment.flop=1", "stage one.augment: unknown key 'flop'; did you mean 'flip'"),
        ('train.augment={"flop": 1}', "stage one.augment: unknown key 'flop'; did you mean 'flip'"),
        ("train.augment.flip=2", "Augmentation.flip is 2.0; expected a share from 0 to 1"),
        ("train.augmnt.flip=2", "unknown key 'augmnt'; did you mean 'augment'"),
        ("train.steps.many=2", "steps has no parts; these have: pixels, augment, budget"),
        ("train.rat=1", "unknown key 'rat'; did you mean 'rate'"),
        ("ones.steps=1", "no stage 'ones'; did you mean 'one'"),
        ("stps=1", "--set stps: unknown; did you mean 'steps'"),
        ("sise=full", "--set sise: unknown; did you mean 'size'"),
        ("foldr=x", "--set foldr: unknown; did you mean 'folder'"),
        ("one.steps=many", "one.steps: got 'many' (str), expected int"),
        ("steps=many", "run.steps: got 'many' (str), expected int"),
        ("one.steps", "expected NAME=VALUE"),
        ("train.warmup=100", "Stage.warmup is 100; expected 0 to 3"),
        ("workers=-1", "Run.workers is -1"),
    ],
)
def test_wrong_settings_are_named(recipe, capsys, setting, complaint):
    assert main(["train", recipe, "--dry-run", "--set", setting]) == 2
    out, err = capsys.readouterr()
    assert out == "" and complaint in err and err.count("\n") == 1


def test_what_is_no_recipe_is_named(tmp_path, capsys):
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def run():\n    return 3\n")
    for path, complaint in ((empty, "no function run()"), (wrong, "gave a int"), (tmp_path / "none.py", "is no file")):
        assert main(["train", str(path)]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["train"]) == 2
    assert "name a recipe" in capsys.readouterr().err
    assert main(["train", str(empty), "--plot", str(tmp_path / "x.png")]) == 2


def test_a_replay_file_shows_the_sample(recipe, tmp_path, capsys):
    assert main(["train", recipe, "--set", "steps=12", "poison=true"]) == 2
    err = capsys.readouterr().err
    (file,) = (tmp_path / "out" / "one").glob("replay-*.json")
    assert f"--replay {file}" in err and "toy-find:4" in err
    assert main(["train", "--replay", str(file)]) == 0
    out = capsys.readouterr().out
    assert "again: loss nan" in out and "toy-find:4: nan on its own" in out and "not finite: vision.patch" in out
    assert main(["train", "--replay", str(tmp_path / "recipe.py")]) == 2


def begin(recipe, folder, *settings):
    words = [sys.executable, "-m", "foveal", "train", recipe, "--set", f"folder={folder}", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_ctrl_c_leaves_with_130(recipe, tmp_path):
    process = begin(recipe, tmp_path / "out", "steps=200", "workers=2")
    log = tmp_path / "out" / "one" / "log.jsonl"
    while process.poll() is None and len(read_rows(log)) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=200)
    assert process.returncode == 130, complaint
    assert "the same command goes on" in complaint
    found = Checkpoints(log.parent, "one").newest()
    assert found is not None and int(found[1]["step"]) == read_rows(log)[-1]["step"]
