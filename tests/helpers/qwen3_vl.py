"""Tiny random Qwen3-VL checkpoints, dense and with experts, written by transformers through real files."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tests.helpers.checkpoints import special_ids
from tests.helpers.tiny_tokenizer import FOLDER

PUBLISHED = Path(__file__).parent.parent / "data_files" / "published" / "Qwen3-VL-4B-Instruct"


def oracle(*, moe: bool = False, expert_width: int = 28, tied: bool = False, seed: int = 0, std: float = 0.15) -> Any:
    """A random model of transformers whose every parameter is random, norms and biases too."""
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
    )

    ids = special_ids()
    text: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "intermediate_size": 88,
        "vocab_size": 640,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 3, 3], "mrope_interleaved": True,
        },
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": tied,
    }  # fmt: skip
    if moe:
        text |= {
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": expert_width,
            "mlp_only_layers": [2],
        }
    config = (Qwen3VLMoeConfig if moe else Qwen3VLConfig)(
        text_config=text,
        vision_config={
            "hidden_size": 32, "out_hidden_size": 48, "depth": 5, "num_heads": 2, "intermediate_size": 52,
            "num_position_embeddings": 49, "deepstack_visual_indexes": [0, 2, 3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = (Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * std
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model


def write_processing(folder: Path) -> None:
    """The small vocabulary with the processing files of the release."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FOLDER / "tokenizer.json", folder)
    settings = json.loads((FOLDER / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in ("chat_template.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        shutil.copy(PUBLISHED / name, folder)


def write(model: Any, folder: Path, *, shard: str = "5GB") -> Path:
    """The model as transformers saves it, with the processing files of the release."""
    model.save_pretrained(folder, max_shard_size=shard)
    write_processing(folder)
    return folder
