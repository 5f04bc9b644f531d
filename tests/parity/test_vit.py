"""ViT beside transformers, on tiny random checkpoints through real files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import foveal
from tests.helpers import vit
from tests.helpers.pictures import odd_pictures

CHANGES = {
    "released": {},
    "wide patches": {"patch_size": 16, "image_size": 64},
    "pixels left over": {"patch_size": 14, "image_size": 50},
    "other activation": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}


@pytest.fixture(scope="module", params=CHANGES)
def pair(request, tmp_path_factory):
    """The same weights in transformers and in Foveal."""
    oracle = vit.oracle(seed=len(request.param), **CHANGES[request.param])
    return oracle, foveal.load(vit.write(oracle, tmp_path_factory.mktemp("vit")), device="cpu")


def theirs(oracle, pictures, side, **options):
    """transformers' pixels and outputs, one picture after the other."""
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": side, "width": side})
    pixels = [processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures]
    with torch.no_grad():
        outputs = [oracle(p, output_hidden_states=True, **options) for p in pixels]
    return torch.cat(pixels), outputs


def pixels_of(batch, patch):
    """Patch rows of equal pictures as [N, 3, H, W]."""
    count, (_, high, wide) = len(batch.grids), batch.grids[0].tolist()
    rows = torch.from_numpy(batch.patches).view(count, high, wide, 3, patch, patch)
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, high * patch, wide * patch)


def close(ours, expected):
    # Worst seen: 7.7e-6, on values up to 10.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_20_odd_sizes(pair):
    oracle, model = pair
    side = oracle.config.image_size
    pictures = odd_pictures()
    pixels, outputs = theirs(oracle, pictures, side)
    batch = model.process(pictures)
    seen = side // oracle.config.patch_size * oracle.config.patch_size
    # Same filter on the same 8-bit pixels; the order of scaling differs in the last bit.
    torch.testing.assert_close(pixels_of(batch, oracle.config.patch_size), pixels[..., :seen, :seen], rtol=0, atol=1e-6)
    names = ["vision.embeddings", *(f"vision.blocks.{i}" for i in range(oracle.config.num_hidden_layers))]
    logits, kept = model.forward(batch, keep=names)
    close(logits, torch.cat([o.logits for o in outputs]))
    tokens = len(kept[names[0]]) // len(pictures)
    for layer, name in enumerate(names):
        for picture, output in enumerate(outputs):
            ours = kept[name][picture * tokens : (picture + 1) * tokens]
            if layer < len(output.hidden_states):
                expected = output.hidden_states[layer][0]
                close(
                    ours if layer < len(names) - 1 else model.network.vision.norm_after(ours),
                    normed(oracle, layer, expected, names),
                )


def normed(oracle, layer, expected, names):
    """The last hidden state, which the model normalises before its head."""
    return oracle.vit.layernorm(expected) if layer == len(names) - 1 else expected


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
def test_other_resolutions(pair, factor):
    oracle, model = pair
    side = int(oracle.config.image_size * factor)
    side -= side % oracle.config.patch_size  # transformers wants whole patches here
    pictures = odd_pictures(1)[8:13]
    _, outputs = theirs(oracle, pictures, side, interpolate_pos_encoding=True)
    logits, _ = model.forward(model.process(pictures, side_px=side))
    close(logits, torch.cat([o.logits for o in outputs]))


def test_labels_with_probabilities(pair):
    oracle, model = pair
    pictures = odd_pictures(2)[10:14]
    _, outputs = theirs(oracle, pictures, oracle.config.image_size)
    for output, guesses in zip(outputs, model.classify(pictures), strict=True):
        best = output.logits[0].softmax(-1).topk(5)
        assert [g.label for g in guesses] == [vit.LABELS[i] for i in best.indices]
        assert [g.probability for g in guesses] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_alone_is_as_in_a_pack(pair):
    _, model = pair
    pictures = odd_pictures(3)
    together, _ = model.forward(model.process(pictures))
    alone = torch.cat([model.forward(model.process(p))[0] for p in pictures])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # worst seen: 1.2e-6


@pytest.mark.parametrize("bare", [False, True])
def test_saved_folder_opens_in_transformers(tmp_path, bare):
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, ViTForImageClassification, ViTModel

    oracle = vit.oracle(bare=bare, seed=5)
    model = foveal.load(vit.write(oracle, tmp_path / "a"), device="cpu")
    model.save(tmp_path / "b", shard_bytes=20_000)
    made = ViTModel if bare else ViTForImageClassification
    again, info = made.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    for (name, one), (_, two) in zip(oracle.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    if not bare:
        assert again.config.id2label == dict(enumerate(vit.LABELS))
    pictures = odd_pictures()[5:8]
    batch = model.process(pictures)
    values = AutoImageProcessor.from_pretrained(tmp_path / "b", backend="pil")(pictures, return_tensors="pt")
    with torch.no_grad():
        output = again.eval()(**values)
    ours, _ = model.forward(batch)
    close(ours, output.pooler_output if bare else output.logits)
    reloaded = foveal.load(tmp_path / "b", device="cpu")
    assert torch.equal(reloaded.forward(batch)[0], ours)
    reloaded.save(tmp_path / "c")
    one, two = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "c/model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_half_precision_is_close(tmp_path):
    oracle = vit.oracle(seed=6)
    folder = vit.write(oracle, tmp_path / "a")
    pictures = odd_pictures()[:6]
    full, half = (foveal.load(folder, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    one, two = full.forward(full.process(pictures))[0], half.forward(half.process(pictures))[0]
    assert two.dtype == torch.bfloat16
    assert np.abs((one - two.float()).numpy()).max() < 0.05  # worst seen: 0.015, on values up to 8


@pytest.mark.slow
def test_the_published_size(tmp_path):
    """vit-base-patch16-224 with random weights of the usual deviation."""
    from transformers import ViTConfig, ViTForImageClassification

    published = Path(__file__).parents[1] / "data_files/published/vit-base-patch16-224"
    torch.manual_seed(0)
    oracle = ViTForImageClassification(ViTConfig(**json.loads((published / "config.json").read_text()))).eval()
    folder = vit.write(oracle, tmp_path)
    shutil.copy(published / "preprocessor_config.json", folder)
    model = foveal.load(folder, device="cpu")
    pictures = odd_pictures()[11:15]
    _, outputs = theirs(oracle, pictures, 224)
    logits, _ = model.forward(model.process(pictures))
    close(logits, torch.cat([o.logits for o in outputs]))
    assert len(model.labels) == 1000
