"""DeepSeek's own layout converted into transformers': opened there, with the same answers."""

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.core.errors import ConfigError
from foveal.families.convert import convert
from tests.helpers import deepseek_vl
from tests.helpers.deepseek_vl import GOLDEN


@pytest.fixture(scope="module", params=["hybrid", pytest.param("siglip", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory):
    """A model in both layouts, and the folder of the second."""
    folder = tmp_path_factory.mktemp(request.param)
    source = deepseek_vl.original(request.param, folder / "original")
    done = convert(source, folder / "converted")
    assert any("left out" in note and "vision.unused" in note for note in done.notes)
    models = (foveal.load(f, dtype="float32", device="cpu") for f in (source, done.target))
    return *models, done.target


def question(file):
    picture = Image.open(GOLDEN / "images" / file)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Describe the image."}]
    return [{"role": "user", "content": content}], picture


@pytest.mark.parametrize(
    "file", ["land.png", *(pytest.param(f, marks=pytest.mark.slow) for f in ("port.jpg", "sq.png"))]
)
def test_transformers_opens_it(pair, file):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    _, converted, folder = pair
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    theirs = AutoProcessor.from_pretrained(folder)
    messages, picture = question(file)
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    given = theirs(text=text, images=[picture], return_tensors="pt")
    batch = converted.process(messages)
    assert batch.tokens.tolist() == given["input_ids"][0].tolist()
    with torch.no_grad():
        # Worst seen: 3.9e-5.
        torch.testing.assert_close(converted.forward(batch).logits, model.eval()(**given).logits[0], rtol=0, atol=2e-4)


def test_a_square_picture_is_seen_as_before(pair):
    """Sides need no rounding; the small picture still goes another way in the hybrid model."""
    original, converted, _ = pair
    messages, _ = question("sq.png")
    one, two = original.process(messages), converted.process(messages)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    difference = (original.forward(one).logits - converted.forward(two).logits).abs().max()
    # Measured: 0 where there is one size; 0.18, with logits up to 20, where the small picture was 8-bit once more.
    assert difference < (1e-6 if converted.config.vision.high is None else 0.5)
    for name, tensor in converted.network.state_dict().items():
        assert torch.equal(tensor, original.network.state_dict()[name]), name


def test_pixels_are_normalised_once(tmp_path):
    """Where the processor normalises and the tower too, transformers' processor could not do the same."""
    import json

    folder = deepseek_vl.original("hybrid", tmp_path / "a")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": True}))
    with pytest.raises(ConfigError, match="144 px pictures are normalised twice"):
        convert(folder, tmp_path / "b")
