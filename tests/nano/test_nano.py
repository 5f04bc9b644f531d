"""The small model that ships: its files, that others open it, and what it can do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.engine.model import Model, load
from foveal.eval.run import evaluate
from foveal.eval.tasks.scenes import SceneTask
from foveal.families.describe import folder_of

SCENES = Path(__file__).parent.parent / "data_files" / "scenes"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def nano() -> Model:
    return load(device="cpu")


def test_it_is_small_and_in_the_published_layout() -> None:
    files = {f.name: f.stat().st_size for f in folder_of(None).iterdir() if f.is_file()}
    assert sum(files.values()) <= 20 * MEGABYTE
    shards = [n for n in files if n.startswith("model-") and n.endswith(".safetensors")]
    assert shards and all(files[n] < 15 * MEGABYTE for n in shards)
    assert {
        "config.json", "generation_config.json", "model.safetensors.index.json", "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.json", "README.md",
    } <= files.keys()  # fmt: skip
    config = json.loads((folder_of(None) / "config.json").read_text())
    assert config["model_type"] == "qwen2_vl" and config["torch_dtype"] == "bfloat16"
    assert sum(config["rope_scaling"]["mrope_section"]) * 2 == config["hidden_size"] // config["num_attention_heads"]


def test_transformers_opens_it_and_agrees(nano: Model) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    theirs = Qwen2VLForConditionalGeneration.from_pretrained(folder_of(None), dtype=torch.float32).eval()
    ours = load(dtype="float32", device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Describe the image."}]
    batch = ours.process([{"role": "user", "content": content}])
    with torch.no_grad():
        mine = ours.forward(batch).logits
        tokens = torch.from_numpy(batch.tokens)[None]
        image = theirs.config.image_token_id
        other = theirs(
            input_ids=tokens,
            mm_token_type_ids=(tokens == image).long(),
            pixel_values=torch.from_numpy(batch.patches),
            image_grid_thw=torch.from_numpy(batch.grids),
        ).logits[0]
    assert (mine - other).abs().max().item() < 1e-3


def test_any_text_can_be_asked(nano: Model) -> None:
    text = "Größe? 你好 🙂 <|im_end|>\n\tΩ"
    tokenizer = nano.processor.tokenizer
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode(ids) == text
    assert not nano.special_ids & set(ids)


def test_a_large_photograph_is_seen_small(nano: Model) -> None:
    picture = Image.new("RGB", (4032, 3024), (90, 120, 60))
    batch = nano.process([{"role": "user", "content": [{"type": "image", "image": picture}]}])
    width, height = batch.media[0].view.processed
    assert width * height <= 168 * 168 and batch.media[0].tokens <= 36


@pytest.mark.slow
def test_it_answers_questions_about_scenes_it_never_saw(nano: Model) -> None:
    """40 stored held-out scenes; the thresholds lie two standard errors below the figures of the model card."""
    result = evaluate(nano, SceneTask.stored(SCENES), blind=True)
    least = json.loads((SCENES / "least.json").read_text())
    shares = {name: result.figures[name].share for name in least}
    assert all(shares[name] >= bound for name, bound in least.items()), (shares, least)
    for name in least:
        assert shares[name] > result.blind[name].share, name
