"""DeepSeek-VL beside recorded outputs of the original code: `tests/golden/deepseek_vl/README.md`.

Measured worst differences are noted beside each tolerance; the tolerances are those that the recordings state.
"""

import json
from functools import cache

import numpy as np
import pytest
import torch

import foveal
from tests.helpers import deepseek_vl
from tests.helpers.deepseek_vl import GOLDEN

KINDS = ("hybrid", "siglip")
CASES = [(kind, name) for kind in KINDS for name in ("text_only", "one_image", "two_images", "multi_turn")]


@cache
def recorded(kind):
    cases = json.loads((GOLDEN / kind / "cases.json").read_text(encoding="utf-8"))
    return cases, dict(np.load(GOLDEN / kind / "outputs.npz")), dict(np.load(GOLDEN / kind / "pixel_values.npz"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        kind: foveal.load(deepseek_vl.original(kind, tmp_path_factory.mktemp(kind)), dtype="float32", device="cpu")
        for kind in KINDS
    }


def near(ours, expected, tolerance):
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_ids_of_chat_and_of_the_raw_prompt(models, kind, name):
    case, process = recorded(kind)[0][name], models[kind].process
    assert process(deepseek_vl.messages(case)).tokens.tolist() == case["input_ids"]
    media = [GOLDEN / file for file in case["image_files"]]
    assert process(prompt=case["sft_format"], media=media).tokens.tolist() == case["input_ids"]


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, n in CASES if n != "text_only"])
def test_pixels(models, kind, name):
    cases, _, pixels = recorded(kind)
    batch = models[kind].process(deepseek_vl.messages(cases[name]))
    sight = models[kind].processor.processing.vision.first
    ours = deepseek_vl.squares(batch.patches, sight.patch, sight.side)
    np.testing.assert_allclose(ours, pixels[name], rtol=0, atol=1e-6)  # worst seen: 0


def test_the_small_picture(models):
    cases, _, pixels = recorded("hybrid")
    batch = models["hybrid"].process(deepseek_vl.messages(cases["one_image"]))
    ours = deepseek_vl.squares(batch.extra["low"], 4, 24)
    expected = pixels["one_image.low_res_before_norm"]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)  # worst seen: 1.8e-7


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_logits(models, kind, name):
    cases, outputs, _ = recorded(kind)
    batch = models[kind].process(deepseek_vl.messages(cases[name]))
    logits = models[kind].forward(batch).logits
    near(logits[outputs[f"{name}.positions"]], outputs[f"{name}.logits"], 1e-3)  # worst seen: 2.9e-5


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_greedy_tokens_and_their_scores(models, kind, name):
    cases, outputs, _ = recorded(kind)
    vlm, case = models[kind], cases[name]
    batch = vlm.process(deepseek_vl.messages(case))
    assert vlm.generate(batch, max_tokens=16, temperature=0, ignore_eos=True) == [case["generated_ids"]]
    cache_ = vlm.network.language.new_cache(1, capacity=len(batch.tokens) + 16)
    with torch.inference_mode():
        scores = [vlm.network(batch, cache=cache_, at=np.array([len(batch.tokens) - 1])).logits]
        scores += [vlm.network.step(batch, [0], [token], cache_) for token in case["generated_ids"][:-1]]
    near(torch.cat(scores), outputs[f"{name}.decode_logits"], 1e-3)  # worst seen: 1.5e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_padding_says_what_the_padded_one_said(models, kind):
    cases = recorded(kind)[0]
    rows = cases["batch"]["rows"]
    batch = models[kind].process([deepseek_vl.messages(cases[name]) for name in rows])
    said = models[kind].generate(batch, max_tokens=16, temperature=0, ignore_eos=True)
    assert said == cases["batch"]["generated_ids"]


def towers(vlm, case):
    names = ["vision", "adapter"]
    if vlm.config.vision.high is not None:
        names += [
            "vision.high",
            "vision.low",
            *(f"vision.high.blocks.{i}" for i in range(vlm.config.vision.high.depth)),
        ]
    return vlm.forward(vlm.process(deepseek_vl.messages(case)), keep=names).kept


def test_hybrid_towers_blocks_and_aligner(models):
    cases, outputs, _ = recorded("hybrid")
    kept = towers(models["hybrid"], cases["one_image"])
    near(kept["vision.high"][::8], outputs["one_image.high_tower"], 1e-4)  # worst seen: 6.3e-6
    near(kept["vision.low"][::8], outputs["one_image.low_tower"], 1e-4)  # worst seen: 4.1e-6
    near(kept["adapter"][::8], outputs["one_image.aligner"], 1e-4)  # worst seen: 3.6e-6
    assert torch.equal(kept["vision"], torch.cat((kept["vision.high"], kept["vision.low"]), dim=-1))
    for index in range(4):
        block = kept[f"vision.high.blocks.{index}"].view(18, 18, -1)[::3, ::3]
        near(block, outputs[f"one_image.sam_block_{index}"], 1e-4)  # worst seen: 2.1e-5


def test_siglip_tower_and_aligner(models):
    cases, outputs, _ = recorded("siglip")
    kept = towers(models["siglip"], cases["one_image"])
    near(kept["vision"][::4], outputs["one_image.tower"], 1e-4)  # worst seen: 2.1e-6
    near(kept["adapter"][::8], outputs["one_image.aligner"], 1e-4)  # worst seen: 1.5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_norms_have_the_published_epsilon(kind, tmp_path):
    """With faint features the epsilons show."""
    vlm = foveal.load(deepseek_vl.original(kind, tmp_path), dtype="float32", device="cpu")
    cases, outputs, _ = recorded(kind)
    faint = ("patch", "positions", "out", "down", "first", "second")
    with torch.no_grad():
        for name, parameter in vlm.network.vision.named_parameters():
            if set(name.split(".")) & set(faint) and "unused" not in name:
                parameter.mul_(1e-3)
    kept = towers(vlm, cases["one_image"])
    if kind == "siglip":
        near(kept["vision"][::4], outputs["eps_probe.tower"], 3e-4)  # worst seen: 9.6e-7
    else:
        near(kept["vision.high"][::8], outputs["eps_probe.high_tower"], 3e-4)  # worst seen: 3.6e-7
        near(kept["vision.low"][::8], outputs["eps_probe.low_tower"], 3e-4)  # worst seen: 1.3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_saved_folder_is_the_released_layout(models, kind, tmp_path):
    """Every name, shape and value of the recorded file, those without use included; and it opens again."""
    from safetensors.torch import load_file

    vlm = models[kind]
    vlm.save(tmp_path / "saved", shard_bytes=10**9)
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    saved, released = load_file(file), load_file(GOLDEN / kind / "model.safetensors")
    assert saved.keys() == released.keys()
    assert all(torch.equal(saved[name], released[name]) for name in saved)
    reloaded = foveal.load(tmp_path / "saved")
    assert reloaded.config == vlm.config
    batch = vlm.process(deepseek_vl.messages(recorded(kind)[0]["two_images"]))
    assert torch.equal(reloaded.forward(batch).logits, vlm.forward(batch).logits)
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / "saved" / name).read_text() == (GOLDEN / kind / name).read_text()
