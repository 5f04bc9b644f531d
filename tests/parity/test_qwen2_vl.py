"""Qwen2-VL beside transformers, on tiny random checkpoints through real files.

Measured worst differences in fp32 over the cases below are noted beside each tolerance.
"""

import numpy as np
import pytest
import torch

import foveal
from tests.helpers import checkpoints, layouts

IDS = checkpoints.special_ids()


def images(rng, count):
    parts = [{"type": "image", "image": layouts.picture(rng)} for _ in range(count)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": layouts.sentence(rng)}]}]


@pytest.mark.parametrize("seed", range(12))
def test_features_hidden_states_and_logits(pair, seed):
    oracle, vlm = pair
    rng = np.random.default_rng(seed)
    batch = vlm.process(layouts.conversation(rng))
    depth = vlm.config.language.depth
    names = ["embeddings", *(f"layers.{i}" for i in range(depth)), "norm"]
    if batch.media:
        names += ["vision", "adapter"]
    out = vlm.forward(batch, keep=names)
    with torch.no_grad():
        expected = oracle(**layouts.oracle_inputs(batch, IDS), output_hidden_states=True)
        if batch.media:
            seen = oracle.model.visual(torch.from_numpy(batch.patches), torch.from_numpy(batch.grids))
            close(out.kept["vision"], seen.last_hidden_state)
            close(out.kept["adapter"], seen.pooler_output)
    # transformers' last "hidden state" is the normalised one.
    ours = [out.kept["embeddings"], *(out.kept[f"layers.{i}"] for i in range(depth - 1)), out.kept["norm"]]
    for mine, theirs in zip(ours, expected.hidden_states, strict=True):
        close(mine, theirs[0])
    close(out.logits, expected.logits[0])


def close(ours, theirs):
    # Worst seen: 3.9e-5, on values up to 26.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_64_greedy_tokens(pair, seed):
    oracle, vlm = pair
    batch = vlm.process(images(np.random.default_rng(seed), seed))
    ours = vlm.generate(batch, max_tokens=64, temperature=0, ignore_eos=True)[0]
    inputs = layouts.oracle_inputs(batch, IDS)
    del inputs["position_ids"]
    pads = [IDS["<|image_pad|>"], IDS["<|video_pad|>"], IDS["<|vision_pad|>"]]
    theirs = oracle.generate(
        **inputs,
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=pads,
    )
    assert ours == theirs[0, len(batch.tokens) :].tolist()


def test_saved_folder_opens_in_transformers(pair, tmp_path):
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    oracle, vlm = pair
    vlm.save(tmp_path / "saved", shard_bytes=100_000)
    again, info = Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    for (name, one), (_, two) in zip(oracle.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    batch = vlm.process(images(np.random.default_rng(0), 2))
    with torch.no_grad():
        close(vlm.forward(batch).logits, again.eval()(**layouts.oracle_inputs(batch, IDS)).logits[0])
    text = "Find the red bicycle, 描述这张图片"
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text).input_ids == vlm.processor.tokenizer.encode_text(
        text
    )
    # And Foveal opens what Foveal saved.
    reloaded = foveal.load(tmp_path / "saved")
    assert torch.equal(reloaded.forward(batch).logits, vlm.forward(batch).logits)


def test_library_spelling_is_read(tmp_path):
    """Adapters and some tools write `model.visual.` and `model.language_model.`."""
    from safetensors.torch import load_file, save_file

    oracle = checkpoints.oracle()
    folder = checkpoints.write(oracle, tmp_path / "a")
    official = foveal.load(folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("visual.", "model.visual.", 1)
        if name.startswith("visual.")
        else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tensors.items()
    }
    assert set(renamed) != set(tensors)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    other = foveal.load(folder)
    for (name, one), two in zip(official.network.named_parameters(), other.network.parameters(), strict=True):
        assert torch.equal(one, two), name
