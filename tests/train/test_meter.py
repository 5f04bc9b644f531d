"""Operations of a step, counted by hand; peaks; rows of figures."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from foveal.families import qwen2_vl
from foveal.families.describe import families
from foveal.train.lora import Lora, apply
from foveal.train.meter import PEAKS, Meter, operations, peak_operations
from foveal.train.task import Size

TINY = qwen2_vl.FAMILY.size("tiny")
LAYER = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
BODY = 3 * LAYER
HEAD = 640 * 64
MERGER = 128 * 128 + 128 * 64
PATCH, BLOCKS = 1176 * 32, 2 * (4 * 32 * 32 + 2 * 32 * 64)


def network(pattern: str = "") -> Any:
    """A tiny Qwen2-VL of which learns what begins with `pattern`."""
    made = qwen2_vl.FAMILY.build(TINY)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name.startswith(pattern))
    return made


def test_all_learns() -> None:
    found = operations(network())
    assert found == {
        "patches": 2.0 * (3 * (PATCH + BLOCKS) - PATCH),  # pixels need no gradient
        "visual": 6.0 * MERGER,
        "tokens": 6.0 * BODY,
        "learned": 6.0 * HEAD,
    }


def test_what_is_frozen_costs_less() -> None:
    adapter = operations(network("adapter."))
    assert adapter == {
        "patches": 2.0 * (PATCH + BLOCKS), "visual": 2.0 * (3 * MERGER), "tokens": 4.0 * BODY, "learned": 4.0 * HEAD,
    }  # fmt: skip
    last = operations(network("language.layers.2."))
    assert last == {
        "patches": 2.0 * (PATCH + BLOCKS), "visual": 2.0 * MERGER, "tokens": 2.0 * (2 * LAYER + 3 * LAYER),
        "learned": 4.0 * HEAD,
    }  # fmt: skip


def test_updates_beside_frozen_weights() -> None:
    made = network("nothing")
    apply(made, Lora(rank=4, targets=("language.layers.2.mlp.down",)))
    found = operations(made)
    assert found is not None
    # Its gradient begins there: forward everywhere, and the update's two factors also backward.
    assert found["tokens"] == 2.0 * BODY + (4.0 * 4 * 96 + 6.0 * 4 * 64)
    assert found["learned"] == 4.0 * HEAD


def test_tied_heads_count_once_and_tables_not_at_all() -> None:
    tied = qwen2_vl.FAMILY.build(replace(TINY, language=replace(TINY.language, tied=True)))
    assert operations(tied) == operations(network())
    clip = families()["clip"]
    pair = clip.build(clip.size("tiny"))
    found = operations(pair)
    assert found is not None
    matrices = sum(p.numel() for n, p in pair.text.named_parameters() if p.ndim > 1 and "embed" not in n)
    assert found["tokens"] <= 6.0 * matrices and found["learned"] == 0


def test_mixtures_of_experts_are_not_counted() -> None:
    family = families()["deepseek_vl2"]
    with torch.device("meta"):
        assert operations(family.build(family.size("tiny"))) is None


def test_rows() -> None:
    made = network()
    meter = Meter(made, peak=1e12, world=2)
    size = Size(tokens=100, visual=16, media=1, patches=64)
    meter.add([size, size], samples=2, learned=30, skipped=0, loss=3.0, norm=1.0)
    meter.since -= 1000  # as if that much time had passed
    row = meter.row(meter.sums)
    counted = operations(made)
    assert counted is not None
    done = 200 * counted["tokens"] + 32 * counted["visual"] + 128 * counted["patches"] + 30 * counted["learned"]
    assert row["mfu"] == pytest.approx(done / 1000 / 2e12, abs=1e-4)
    assert row["tokens"] == 200 and row["tokens_per_s"] == pytest.approx(0.2)
    assert meter.sums["tokens"] == 0


def test_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12), ("NVIDIA L40S", 362e12),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, n=name: n)
        assert peak_operations(torch.device("cuda"), torch.bfloat16) == peak
    assert max(PEAKS.values()) < 1e16
    assert peak_operations(torch.device("cpu"), torch.float32) > 1e8
