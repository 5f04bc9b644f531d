"""Losses of pairs on 1, 2 and 4 processes: beside formulas in numpy, one process, and numbers of open_clip."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.core.errors import InputError
from foveal.train.losses.contrastive import contrastive_loss, distill_loss
from foveal.train.losses.sigmoid import EXCHANGES, sigmoid_loss
from tests.helpers import pair_losses as plain
from tests.helpers import ranks

ROOT = Path(__file__).parents[3]
OPEN_CLIP = ROOT / "tests/data_files/losses/open_clip.npz"
NAMES = sorted(ranks.variants({}))
LEAVES = ("images", "texts", "scale", "bias")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Values and gradients of every variant, type, world and process."""
    path = tmp_path_factory.mktemp("ranks") / "found.npz"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "tests/helpers/ranks.py"), str(path)]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert made.returncode == 0, made.stderr
    return dict(np.load(path))


def together(found, world, kind, name):
    """Mean over processes of the loss, and gradients as the mean over processes makes them for parameters behind."""
    key = f"{world}.{kind}.{name}"
    result = {"value": np.mean([found[f"{key}.{rank}.value"] for rank in range(world)], dtype=np.float64)}
    for leaf in LEAVES:
        parts = [found[f"{key}.{rank}.{leaf}"] for rank in range(world) if f"{key}.{rank}.{leaf}" in found]
        if parts:
            rows = [part.astype(np.float64) / world for part in parts]
            result[leaf] = np.concatenate(rows) if rows[0].ndim else np.sum(rows)
    return result


@cache
def expected(name, world):
    """What a variant should give, from the formulas."""
    rows = ranks.features()
    images, texts, scale = rows["images"], rows["texts"], ranks.SCALE
    loss, how, *_ = name.split(".")
    if loss == "siglip":
        return plain.siglip(images, texts, scale, ranks.BIAS)
    teacher = ranks.TEACHER_SCALE * rows["teacher_images"] @ rows["teacher_texts"].T
    every = slice(None)

    def made(part, constant=False):
        if loss == "clip":
            return (plain.clip_constant_columns if constant else plain.clip)(images[part], texts[part], scale)
        function = plain.distill_constant_columns if constant else plain.distill
        return function(images[part], texts[part], scale, teacher[part, part])

    if how == "local":
        size = ranks.PAIRS // world
        parts = [made(slice(r * size, (r + 1) * size)) for r in range(world)]
        mean = {leaf: np.mean([p[leaf] for p in parts]) for leaf in ("value", "scale")}
        return mean | {leaf: np.concatenate([p[leaf] for p in parts]) / world for leaf in ("images", "texts")}
    if how == "no_grad" and world > 1:
        if ".full" not in name:
            return made(every, constant=True)
        whole = made(every)  # exact on each process; the mean divides it
        return whole | {leaf: whole[leaf] / world for leaf in ("images", "texts")}
    return made(every)


def differences(ours, wanted):
    """Largest difference of each leaf, relative to the largest number there."""
    assert ours.keys() == wanted.keys()
    return {leaf: np.abs(ours[leaf] - wanted[leaf]).max() / np.abs(wanted[leaf]).max() for leaf in ours}


@pytest.mark.parametrize("world", ranks.WORLDS)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_formulas(found, name, world):
    exact = differences(together(found, world, "float64", name), expected(name, world))
    assert max(exact.values()) < 1e-13, exact  # worst seen: 8.9e-16
    single = differences(together(found, world, "float32", name), expected(name, world))
    assert max(single.values()) < 1e-6, single  # worst seen: 5.4e-7


@pytest.mark.parametrize("world", ranks.WORLDS[1:])
@pytest.mark.parametrize("name", [n for n in NAMES if not n.split(".")[1].startswith(("local", "no_grad"))])
def test_many_processes_equal_one(found, name, world):
    many, one = (together(found, w, "float32", name) for w in (world, 1))
    worst = differences(many, one)
    assert max(worst.values()) < 1e-6, worst  # worst seen: 4.4e-7


@pytest.mark.parametrize("name", [n for n in NAMES if "chunk" not in n])
def test_chunks_change_nothing(found, name):
    for world in ranks.WORLDS:
        whole, chunked = (together(found, world, "float64", name + tail) for tail in ("", ".chunk"))
        worst = differences(chunked, whole)
        assert max(worst.values()) < 1e-13, worst  # worst seen: 1.1e-15


@cache
def open_clip():
    """ClipLoss, SigLipLoss and DistillClipLoss of open_clip 3.3.0 on the same pairs, in float64, on 1, 2, 4 processes.

    By world and variant (`grad`: gather_with_grad, `own`: local_loss), a row a process: value, gradients
    of scale and bias (0 where there is none), and of the process's first two rows of images and of texts.
    """
    return dict(np.load(OPEN_CLIP))


@pytest.mark.parametrize("key", sorted(open_clip()))
def test_each_process_finds_what_open_clip_finds(found, key):
    world, name = key.split(".", 1)
    for rank, row in enumerate(open_clip()[key]):
        ours = {leaf: found.get(f"{world}.float64.{name}.{rank}.{leaf}", np.zeros(())) for leaf in ("value", *LEAVES)}
        rows = np.split(row, [1, 2, 3, 3 + 2 * ranks.WIDTH])
        for leaf, wanted in zip(("value", "scale", "bias", "images", "texts"), rows, strict=True):
            close = np.abs((ours[leaf][:2] if ours[leaf].ndim else ours[leaf]).ravel() - wanted).max()
            assert close <= 1e-13 * np.abs(wanted).max(), (leaf, rank)  # worst seen: 1.4e-15


@pytest.mark.parametrize("name", ["clip", *EXCHANGES])
def test_a_group_compares_its_own_pairs(found, name):
    """Four processes in two groups of two: each group is a world."""
    rows, half = ranks.features(), ranks.PAIRS // 2
    for number in (0, 1):
        part = slice(number * half, (number + 1) * half)
        images, texts = rows["images"][part], rows["texts"][part]
        if name == "clip":
            wanted = plain.clip(images, texts, ranks.SCALE)
        else:
            wanted = plain.siglip(images, texts, ranks.SCALE, ranks.BIAS)
        parts = [found[f"halves.{name}.{2 * number + rank}.images"] / 2 for rank in (0, 1)]
        values = [found[f"halves.{name}.{2 * number + rank}.value"] for rank in (0, 1)]
        assert np.mean(values) == pytest.approx(wanted["value"], rel=1e-13)
        np.testing.assert_allclose(np.concatenate(parts), wanted["images"], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("name", "variant"), [("clip", "clip.grad.own"), ("bidir", "siglip.bidir")])
def test_a_locked_tower_on_four_processes(found, name, variant):
    for rank in range(4):
        ours, wanted = found[f"locked.{name}.{rank}.texts"], found[f"4.float64.{variant}.{rank}.texts"]
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("name", ["clip", "bidir"])
def test_every_process_refuses_uneven_shares(found, name):
    """Without the check three would wait for ever, or read what is not there."""
    for rank in range(4):
        assert "6 x 16, 5 x 16, 6 x 16, 6 x 16 features" in str(found[f"uneven.{name}.{rank}"])


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_locked_tower_gets_no_gradient(loss):
    """LiT (Zhai et al. 2022) and SigLiT: the picture tower is fixed; only the texts' side learns."""
    learned, _ = ranks.inputs(0, 1, torch.float64)
    open_learned, _ = ranks.inputs(0, 1, torch.float64)
    learned["images"].requires_grad_(False)
    for x in (learned, open_learned):
        if loss == "clip":
            contrastive_loss(x["images"], x["texts"], x["scale"], chunk=5).backward()
        else:
            sigmoid_loss(x["images"], x["texts"], x["scale"], x["bias"], chunk=5).backward()
    assert learned["images"].grad is None
    assert torch.equal(learned["texts"].grad, open_learned["texts"].grad)


def test_features_of_a_small_type_are_compared_in_float32():
    learned, _ = ranks.inputs(0, 1, torch.float32)
    images, texts = (learned[name].detach().bfloat16().requires_grad_() for name in ("images", "texts"))
    with torch.autocast("cpu", torch.bfloat16):
        losses = contrastive_loss(images, texts, 5.0), sigmoid_loss(images, texts, 5.0, -5.0)
    sum(losses).backward()
    rows = [t.detach().double().numpy() for t in (images, texts)]
    assert losses[0].item() == pytest.approx(plain.clip(*rows, 5.0)["value"], rel=1e-6)  # bfloat16: 1e-3
    assert losses[1].item() == pytest.approx(plain.siglip(*rows, 5.0, -5.0)["value"], rel=1e-6)
    assert images.grad.dtype == torch.bfloat16


def test_a_scale_may_be_stored_as_a_row():
    learned, _ = ranks.inputs(0, 1, torch.float64)
    images, texts = learned["images"].detach(), learned["texts"].detach()
    scale, bias = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (ranks.SCALE, ranks.BIAS))
    sigmoid_loss(images, texts, scale, bias).backward()
    wanted = plain.siglip(images.numpy(), texts.numpy(), ranks.SCALE, ranks.BIAS)
    assert scale.grad.tolist() == pytest.approx([wanted["scale"]])
    assert bias.grad.tolist() == pytest.approx([wanted["bias"]])


class Blocks(torch.utils._python_dispatch.TorchDispatchMode):
    """The shapes of all matrices that operations return, but for those of features."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim == 2:
            self.shapes |= (
                {tuple(result.shape)} if not {1, ranks.WIDTH, ranks.TEACHER_WIDTH} & {*result.shape} else set()
            )
        return result


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("chunk")])
def test_no_block_of_logits_is_larger_than_a_chunk(name):
    """24 pairs in blocks of 5: neither forward nor backward makes a larger one."""
    learned, teacher = ranks.inputs(0, 1, torch.float32)
    with Blocks() as seen:
        ranks.variants(teacher)[name](learned).backward()
    assert seen.shapes == {(a, b) for a in (4, 5) for b in (4, 5)}


ROWS = torch.eye(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrastive_loss(ROWS, ROWS[:3], 1.0), r"features \(4, 4\) and texts \(3, 4\)"),
        (lambda: contrastive_loss(ROWS[:0], ROWS[:0], 1.0), "at least 1"),
        (lambda: contrastive_loss(ROWS, ROWS, 1.0, gather="no_grads"), "'no_grad'"),
        (lambda: contrastive_loss(ROWS, ROWS, 1.0, chunk=0), "chunk is 0"),
        (lambda: contrastive_loss(ROWS, ROWS, torch.ones(2)), r"scale has shape \(2,\)"),
        (lambda: sigmoid_loss(ROWS, ROWS, 1.0, torch.ones(2)), r"bias has shape \(2,\)"),
        (lambda: sigmoid_loss(ROWS, ROWS, 1.0, 0.0, exchange="bidirect"), "'bidir'"),
        (lambda: distill_loss(ROWS, ROWS, 1.0, ROWS[:2], ROWS[:2], 1.0), "teacher saw 2"),
    ],
)
def test_what_are_no_pairs_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
