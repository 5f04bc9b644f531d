"""DeepSeek-VL beside transformers, on tiny random checkpoints through real files.

Measured worst differences in fp32 over the cases below are noted beside each tolerance.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from tests.helpers import deepseek_vl, layouts

SIZES = [
    (1, 1), (3, 500), (500, 3), (15, 14), (97, 41), (41, 97), (144, 144), (48, 48), (143, 145), (160, 51),
    (7, 7), (333, 331), (200, 77), (77, 200), (64, 600), (600, 64), (29, 31), (1000, 999), (13, 26), (145, 290),
]  # fmt: skip
SMALL = {"sam": {"image_size": 96, "global_attn_indexes": [0, 2]}}  # 12 x 12 patches: one window, filled up with zeros


QUICK = ["siglip", "hybrid_old"]
LONG = ["siglip_tied", "siglip_no_head", "siglip_tanh", "hybrid", "hybrid_small"]


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def pair(request, tmp_path_factory):
    """The same weights in transformers and in Foveal, and transformers' processor."""
    name = request.param
    changes = {"siglip": {"vision_use_head": False}} if name in ("siglip_no_head", "hybrid_old") else {}
    if name == "siglip_tanh":
        changes = {
            "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5},
            "text": {"rms_norm_eps": 1e-5},
        }
    if name == "hybrid_small":
        changes = SMALL
    oracle = deepseek_vl.oracle(hybrid="hybrid" in name, tied="tied" in name, seed=len(name), **changes)
    folder = deepseek_vl.write(
        oracle,
        tmp_path_factory.mktemp(name),
        shard="60KB" if name == "siglip" else "5GB",
        old="old" in name,
    )
    return oracle, deepseek_vl.processor(oracle), foveal.load(folder, dtype="float32", device="cpu")


def conversation(rng, sizes):
    """Two turns with a picture of each size."""
    pictures = [
        {"type": "image", "image": Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))}
        for width, height in sizes
    ]
    cut = len(pictures) // 2
    return [
        {"role": "user", "content": [{"type": "text", "text": " Hi "}, *pictures[:cut]]},
        {"role": "assistant", "content": [{"type": "text", "text": layouts.sentence(rng)}]},
        {"role": "user", "content": [*pictures[cut:], {"type": "text", "text": layouts.sentence(rng)}]},
    ]


def inputs(theirs, messages, *, generate=True):
    """What transformers' processor makes of the conversation."""
    text = theirs.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False)
    pictures = [p["image"] for m in messages for p in m["content"] if p["type"] == "image"]
    return theirs(text=text, images=pictures or None, return_tensors="pt")


def check_pixels(vlm, batch, expected):
    sights = {"pixel_values": (batch.patches, vlm.processor.processing.vision.first)}
    if small := vlm.processor.processing.vision.small:
        sights = {
            "high_res_pixel_values": sights["pixel_values"],
            "pixel_values": (batch.extra["low"], small),
        }
    for name, (rows, sight) in sights.items():
        ours = deepseek_vl.squares(rows, sight.patch, sight.side)
        # Worst seen: 0.
        np.testing.assert_allclose(ours, expected[name].numpy(), rtol=0, atol=1e-6)


def close(ours, theirs, *, hybrid=False):
    # Worst seen: 1.1e-5, on values up to 20.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4 if hybrid else 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_ids_pixels_features_hidden_states_and_logits(pair, seed):
    oracle, theirs, vlm = pair
    rng = np.random.default_rng(seed)
    messages = conversation(rng, SIZES[4 * seed : 4 * seed + 4])
    batch = vlm.process(messages)
    given = inputs(theirs, messages)
    assert batch.tokens.tolist() == given["input_ids"][0].tolist()
    assert batch.positions.tolist() == [list(range(len(batch.tokens)))]
    check_pixels(vlm, batch, given)
    hybrid, depth = vlm.config.vision.high is not None, vlm.config.language.depth
    names = ["vision", "adapter", "embeddings", *(f"layers.{i}" for i in range(depth)), "norm"]
    out = vlm.forward(batch, keep=[*names, "vision.high", "vision.low"] if hybrid else names)
    pixels = {k: v for k, v in given.items() if "pixel" in k}
    with torch.no_grad():
        expected = oracle(**given, output_hidden_states=True)
        seen = oracle.model.get_image_features(**pixels, return_dict=True)
        low = oracle.model.vision_model(given["pixel_values"]).last_hidden_state
    if hybrid:
        close(out.kept["vision.low"], low.flatten(0, 1), hybrid=True)
        close(out.kept["vision.high"], seen.high_res_vision_last_hidden_state.flatten(0, 1), hybrid=True)
        features = seen.pooler_output
    else:
        close(out.kept["vision"], low.flatten(0, 1))
        features = seen.pooler_output
    close(out.kept["adapter"], features.flatten(0, 1), hybrid=hybrid)
    ours = [out.kept["embeddings"], *(out.kept[f"layers.{i}"] for i in range(depth - 1)), out.kept["norm"]]
    for mine, other in zip(ours, expected.hidden_states, strict=True):
        close(mine, other[0], hybrid=hybrid)
    close(out.logits, expected.logits[0], hybrid=hybrid)


@pytest.mark.parametrize("seed", range(2))
def test_64_greedy_tokens(pair, seed):
    oracle, theirs, vlm = pair
    messages = conversation(np.random.default_rng(seed), SIZES[seed : 3 * seed + 1])
    batch = vlm.process(messages)
    ours = vlm.generate(batch, max_tokens=64, temperature=0, ignore_eos=True)[0]
    given = inputs(theirs, messages)
    answer = oracle.generate(
        **given,
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
        suppress_tokens=[vlm.processor.tokenizer.special(deepseek_vl.IMAGE)],
    )
    assert ours == answer[0, len(batch.tokens) :].tolist()


def test_saved_folder_opens_in_transformers(pair, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    oracle, _, vlm = pair
    vlm.save(tmp_path / "saved", shard_bytes=100_000)
    again, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype=torch.float32
    )
    assert type(again) is type(oracle)
    assert not any(info.values()), info
    for (name, one), (_, two) in zip(oracle.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    messages = conversation(np.random.default_rng(0), SIZES[3:6])
    batch = vlm.process(messages)
    given = inputs(AutoProcessor.from_pretrained(tmp_path / "saved"), messages)
    assert batch.tokens.tolist() == given["input_ids"][0].tolist()
    check_pixels(vlm, batch, given)
    with torch.no_grad():
        close(vlm.forward(batch).logits, again.eval()(**given).logits[0], hybrid=vlm.config.vision.high is not None)
    reloaded = foveal.load(tmp_path / "saved")
    assert torch.equal(reloaded.forward(batch).logits, vlm.forward(batch).logits)
    for (name, one), two in zip(vlm.network.named_parameters(), reloaded.network.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_published_template_is_the_family_s_own_format(pair):
    _, theirs, vlm = pair
    assert vlm.processor.chat is vlm.processor.processing.chat
    written = theirs.tokenizer
    for conversation_ in (
        [
            {"role": "system", "content": [{"type": "text", "text": " Be brief. "}]},
            *conversation(np.random.default_rng(1), []),
        ],
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a", " ", " b ", "\n")]}],
        [{"role": "user", "content": [{"type": "text", "text": ""}]}],
    ):
        text = theirs.apply_chat_template(conversation_, add_generation_prompt=True, tokenize=False)
        assert vlm.process(conversation_).tokens.tolist() == written(text)["input_ids"]


def test_a_folder_without_tied_embeddings_says_so(pair, tmp_path):
    _, _, vlm = pair
    vlm.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["tie_word_embeddings"] == vlm.config.language.tied
    assert config["image_token_id"] == vlm.processor.tokenizer.special(deepseek_vl.IMAGE)
