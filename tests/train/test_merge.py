"""Merging an adapter into a checkpoint folder, and its proof."""

from pathlib import Path

import pytest
import torch

import foveal
from foveal.core.errors import InputError, WeightsError
from foveal.families.load import save_folder
from foveal.nn.lora import adapted
from foveal.train import merge as room
from foveal.train.lora import Lora, apply, save_adapter
from foveal.train.merge import merge_adapter, results
from tests.helpers import peft
from tests.helpers.processing import processor


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_folder(
        folder, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG, network=peft.qwen2_vl(), processor=processor(),
        generation={},
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("adapter", ["listed", "regex"])
def test_the_written_folder_answers_as_the_live_adapter(base, adapter, tmp_path):
    done = merge_adapter(base, peft.FOLDER / adapter, tmp_path / "out")
    live, merged = foveal.load(base, adapter=peft.FOLDER / adapter), foveal.load(tmp_path / "out")
    assert adapted(live.network)
    assert not adapted(merged.network)
    largest = max((a - b).abs().max().item() for a, b in zip(results(live), results(merged), strict=True))
    assert done.stored * done.largest == pytest.approx(largest)
    # Seen: 1.2e-6 of the largest value, 5.3.
    assert done.difference < 3e-6
    assert done.stored == done.difference  # nothing is rounded on the way to float32 files
    assert done.moved > 0.1
    assert (done.samples, done.dtype) == (4, "float32")


def test_narrow_types_are_rounded_once(base, tmp_path):
    done = merge_adapter(base, peft.FOLDER / "listed", tmp_path / "out", dtype="bfloat16")
    # Seen: 0.009 of the largest value; in float16 0.0013.
    assert done.difference < 3e-6 < done.stored < 0.03
    assert {p.dtype for p in foveal.load(tmp_path / "out").network.parameters()} == {torch.bfloat16}
    with pytest.raises(WeightsError, match=r"differs from the live adapter by .* 1e-04 is allowed"):
        merge_adapter(base, peft.FOLDER / "listed", tmp_path / "not", dtype="bfloat16", tolerance=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_wrong_merge_is_found(base, tmp_path, monkeypatch):
    def wrong(network: torch.nn.Module) -> None:
        merge(network)
        with torch.no_grad():
            network.get_submodule("language.layers.1.attention.q").weight[0, 0] += 0.05

    merge = room.merge
    monkeypatch.setattr(room, "merge", wrong)
    with pytest.raises(WeightsError, match="merged network differs from the live adapter"):
        merge_adapter(base, peft.FOLDER / "listed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_small_model_takes_an_adapter(tmp_path):
    model = foveal.load(dtype="float32", device="cpu")
    apply(model.network, Lora(targets=("language.layers.*.attention.*",), rank=2))
    for layer in adapted(model.network).values():
        torch.nn.init.normal_(layer.parts[0].b, std=0.02)
    save_adapter(model.network, tmp_path / "adapter", family=model.family, config=model.config)
    done = merge_adapter(None, tmp_path / "adapter", tmp_path / "out")
    # The small model is stored in bfloat16.
    assert done.difference < 1e-5
    assert done.dtype == "bfloat16"
    assert foveal.load(tmp_path / "out").chat("Hello.", max_tokens=2).ids


def test_wrong_settings_are_named(base, tmp_path):
    with pytest.raises(InputError, match="tolerance is 2"):
        merge_adapter(base, peft.FOLDER / "listed", tmp_path / "out", tolerance=2)
    with pytest.raises(InputError, match="choose another folder"):
        merge_adapter(base, peft.FOLDER / "listed", base)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("mine")
    with pytest.raises(WeightsError, match=r"letter\.txt"):
        merge_adapter(base, peft.FOLDER / "listed", tmp_path / "out")
