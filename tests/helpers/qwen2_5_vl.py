"""Tiny random Qwen2.5-VL checkpoints written by transformers through real files."""

from typing import Any

import torch

from tests.helpers.checkpoints import special_ids


def oracle(*, tied: bool = False, seed: int = 0, std: float = 0.15, window: int = 112) -> Any:
    """A random `Qwen2_5_VLForConditionalGeneration` whose every parameter is random, norms and biases too."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = special_ids()
    config = Qwen2_5_VLConfig(
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
        vision_config={
            "hidden_size": 32,
            "out_hidden_size": 48,
            "depth": 4,
            "num_heads": 2,
            "intermediate_size": 52,
            "window_size": window,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * std
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model
