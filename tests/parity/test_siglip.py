"""SigLIP beside transformers, on tiny random checkpoints through real files: both towers, scores, saved folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.core.errors import ContextError
from tests.helpers import siglip
from tests.helpers.pictures import odd_pictures

CHANGES = {
    "released": {},
    "pixels left over": {"patch_size": 14, "image_size": 50},
    "exact gelu": {"hidden_act": "gelu", "text": {"hidden_act": "gelu", "num_hidden_layers": 1}},
}
TEXTS = ("a photo of a cat", "", "Two red APPLES, on the left!", "x " * 40, "猫 and dog", "the street " * 12)


@pytest.fixture(scope="module", params=CHANGES)
def pair(request, tmp_path_factory):
    """The same weights in transformers and in Foveal."""
    oracle = siglip.oracle(seed=len(request.param), **CHANGES[request.param])
    return oracle, foveal.load(siglip.write(oracle, tmp_path_factory.mktemp("siglip")), device="cpu")


def pixels(oracle, pictures):
    from transformers import SiglipImageProcessorPil

    side = oracle.config.vision_config.image_size
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    return processor(pictures, return_tensors="pt")["pixel_values"]


def close(ours, expected):
    # Worst seen: 6.2e-6, on values up to 8.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def ids(model, texts=TEXTS):
    return torch.tensor([model.processor.captions.encode(text, truncate=True) for text in texts])


def test_image_tower_on_20_odd_sizes(pair):
    oracle, model = pair
    pictures = odd_pictures()
    batch = model.processor.pictures(pictures)
    from foveal.nn.keep import Keep

    keep = Keep(["vision", "image", "vision.blocks.0"])
    with torch.no_grad():
        theirs = oracle.vision_model(pixels(oracle, pictures), output_hidden_states=True)
        ours = model.network.embed_images(torch.from_numpy(batch.patches), batch.grids, keep)
    kept = keep.finish()
    close(kept["vision"], theirs.last_hidden_state.flatten(0, 1))
    close(kept["vision.blocks.0"], theirs.hidden_states[1].flatten(0, 1))
    close(kept["image"], theirs.pooler_output)
    close(ours, F.normalize(theirs.pooler_output, dim=-1))


def test_text_tower(pair):
    oracle, model = pair
    from foveal.nn.keep import Keep

    texts = model.processor.texts(TEXTS, truncate=True)
    keep = Keep(["text.norm", "text"])
    with torch.no_grad():
        theirs = oracle.text_model(ids(model))
        ours = model.network.embed_text(texts.tokens, texts.starts, keep)
    kept = keep.finish()
    close(kept["text.norm"], theirs.last_hidden_state.flatten(0, 1))
    close(kept["text"], theirs.pooler_output)
    close(ours, F.normalize(theirs.pooler_output, dim=-1))


def test_scores(pair):
    oracle, model = pair
    pictures, texts = odd_pictures(4), TEXTS[:3]
    with torch.no_grad():
        theirs = oracle(pixel_values=pixels(oracle, pictures), input_ids=ids(model, texts))
    close(model.similarity(pictures, list(texts)), theirs.logits_per_image)
    matches = model.classify(pictures, ["cat", "dog"], templates=["a photo of a {}"])
    sentences = ids(model, ["a photo of a cat", "a photo of a dog"])
    with torch.no_grad():
        expected = oracle(pixel_values=pixels(oracle, pictures), input_ids=sentences).logits_per_image.sigmoid()
    for match, row in zip(matches, expected.tolist(), strict=True):
        assert list(match.probabilities.values()) == pytest.approx(row, abs=1e-5)
        assert match.label == ("cat", "dog")[int(np.argmax(row))]


def test_alone_is_as_in_a_pack(pair):
    _, model = pair
    pictures = odd_pictures(5)
    alone = torch.cat([model.embed_images(p) for p in pictures])
    torch.testing.assert_close(model.embed_images(pictures), alone, rtol=0, atol=1e-5)  # worst seen: 4e-7
    texts = list(TEXTS[:3])
    alone = torch.cat([model.embed_text(t) for t in texts])
    torch.testing.assert_close(model.embed_text(texts), alone, rtol=0, atol=1e-5)  # worst seen: 3e-7


def test_other_resolutions(pair):
    oracle, model = pair
    patch = oracle.config.vision_config.patch_size
    side = patch * 5
    pictures = odd_pictures()[6:9]
    batch = model.processor.pictures(pictures, side_px=side)
    from transformers import SiglipImageProcessorPil

    values = SiglipImageProcessorPil(size={"height": side, "width": side})(pictures, return_tensors="pt")
    with torch.no_grad():
        theirs = oracle.vision_model(**values, interpolate_pos_encoding=True).pooler_output
        ours = model.network.vision(torch.from_numpy(batch.patches), batch.grids)
    close(ours, theirs)


def test_a_long_text_is_an_error(pair):
    with pytest.raises(ContextError, match="reads 63 and the end"):
        pair[1].embed_text("a word " * 60)


@pytest.mark.parametrize("second", [False, True])
def test_saved_folder_opens_in_transformers(tmp_path, second):
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

    oracle = siglip.oracle(seed=5)
    folder = siglip.write(oracle, tmp_path / "a")
    if second:  # the files of SigLIP 2
        (folder / "spiece.model").unlink()
        siglip.gemma_tokenizer(folder)
    model = foveal.load(folder, device="cpu")
    model.save(tmp_path / "b", shard_bytes=30_000)
    again, info = SiglipModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    for (name, one), (_, two) in zip(oracle.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    pictures = odd_pictures()[5:8]
    values = AutoImageProcessor.from_pretrained(tmp_path / "b", backend="pil")(pictures, return_tensors="pt")
    tokens = ids(model)
    if second:
        theirs = AutoTokenizer.from_pretrained(tmp_path / "b")
        said = theirs(list(TEXTS), padding="max_length", max_length=64, truncation=True, return_tensors="pt").input_ids
        assert torch.equal(said, tokens)
    else:
        assert (tmp_path / "b/spiece.model").read_bytes() == (folder / "spiece.model").read_bytes()
    with torch.no_grad():
        expected = again.eval()(**values, input_ids=tokens).logits_per_image
    texts = model.embed_text(list(TEXTS), truncate=True)
    close(model.similarity(model.embed_images(pictures), texts), expected)
    reloaded = foveal.load(tmp_path / "b", device="cpu")
    assert torch.equal(reloaded.embed_images(pictures), model.embed_images(pictures))
    reloaded.save(tmp_path / "c")
    one, two = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "c/model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_the_published_size(tmp_path):
    """siglip-base-patch16-224 with random weights of the usual deviation, over the small vocabulary."""
    from transformers import SiglipConfig, SiglipModel

    published = Path(__file__).parents[1] / "data_files/published/siglip-base-patch16-224"
    stated = json.loads((published / "config.json").read_text())
    torch.manual_seed(0)
    oracle = SiglipModel(SiglipConfig(**stated)).eval()
    with torch.no_grad():  # as random as trained ones are apart
        for name, parameter in oracle.named_parameters():
            if name.startswith("logit_"):
                parameter.fill_(2.3 if name == "logit_scale" else -10.0)
    folder = siglip.write(oracle, tmp_path)
    shutil.copy(published / "preprocessor_config.json", folder)
    model = foveal.load(folder, device="cpu")
    pictures, texts = odd_pictures()[15:18], ["a photo of a cat", "two dogs"]
    with torch.no_grad():
        theirs = oracle(pixel_values=pixels(oracle, pictures), input_ids=ids(model, texts))
    close(model.similarity(pictures, texts), theirs.logits_per_image)
