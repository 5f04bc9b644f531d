"""Tiny random Qwen2-VL checkpoints written by transformers through real files."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.helpers.tiny_tokenizer import FOLDER

DATA = Path(__file__).parent.parent / "data_files"


@cache
def special_ids() -> dict[str, int]:
    rules = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    return {token["content"]: token["id"] for token in rules["added_tokens"]}


def oracle(*, tied: bool = False, seed: int = 0, std: float = 0.15) -> Any:
    """A random `Qwen2VLForConditionalGeneration` whose every parameter is random, norms and biases too."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = special_ids()
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": 640,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={"embed_dim": 32, "depth": 3, "num_heads": 2, "hidden_size": 48, "mlp_ratio": 2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * std
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model


def write(model: Any, folder: Path, *, shard: str = "5GB") -> Path:
    """The model as transformers saves it, with the tokenizer and processing files of a release."""
    model.save_pretrained(folder, max_shard_size=shard)
    for file in FOLDER.iterdir():
        shutil.copy(file, folder / file.name)
    return folder


def flatten(folder: Path) -> None:
    """Rewrites config.json from transformers' nested form to the flat form of the release."""
    path = folder / "config.json"
    nested = json.loads(path.read_text())
    text = nested.pop("text_config")
    rope = text.pop("rope_parameters")
    for key in ("layer_types", "model_type", "tie_word_embeddings", "pad_token_id"):
        text.pop(key, None)
    seen = nested.pop("vision_config")
    flat = {
        **text,
        **nested,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": {
            "depth": seen["depth"],
            "embed_dim": seen["embed_dim"],
            "mlp_ratio": seen["mlp_ratio"],
            "num_heads": seen["num_heads"],
            "in_chans": seen["in_channels"],
            "hidden_size": seen["hidden_size"],
            "patch_size": seen["patch_size"],
            "spatial_merge_size": seen["spatial_merge_size"],
            "spatial_patch_size": seen["patch_size"],
            "temporal_patch_size": seen["temporal_patch_size"],
        },
    }
    path.write_text(json.dumps(flat))
