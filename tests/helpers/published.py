"""The published Qwen2-VL rendering and position rule, for comparison: transformers, and the rule spelt out."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tests.helpers.tiny_tokenizer import FOLDER


@functools.cache
def template() -> str:
    return str(json.loads((FOLDER / "chat_template.json").read_text())["chat_template"])


@functools.cache
def tokenizer() -> Any:
    from transformers import Qwen2TokenizerFast

    return Qwen2TokenizerFast.from_pretrained(FOLDER)


def string(messages: Sequence[dict[str, Any]], *, generate: bool, **options: Any) -> str:
    """The conversation as transformers renders the published template: one string."""
    return str(
        tokenizer().apply_chat_template(
            messages, chat_template=template(), add_generation_prompt=generate, tokenize=False, **options
        )
    )


def expanded(text: str, counts: Sequence[int]) -> str:
    """`text` with its k-th image or video pad repeated `counts[k]` times."""
    left = iter(counts)
    words = []
    for i, piece in enumerate(text.replace("<|video_pad|>", "\0V\0").replace("<|image_pad|>", "\0I\0").split("\0")):
        words.append({"V": "<|video_pad|>", "I": "<|image_pad|>"}[piece] * next(left) if i % 2 else piece)
    return "".join(words)


def ids(text: str) -> list[int]:
    """transformers' token ids of a whole string, special tokens honoured."""
    return list(tokenizer()(text, add_special_tokens=False)["input_ids"])


@functools.cache
def _model() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLModel

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 1, "hidden_size": 16}
    config = Qwen2VLConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        return Qwen2VLModel(config)


def library_positions(
    kinds: Sequence[int], grids: Sequence[tuple[int, tuple[int, int, int]]]
) -> tuple[np.ndarray, int]:
    """transformers' positions. `kinds` is 0 text, 1 image, 2 video per token; `grids` are (kind, patches t h w)."""
    types = torch.tensor([list(kinds)])
    by_kind = {k: torch.tensor([g for kind, g in grids if kind == k]).reshape(-1, 3) for k in (1, 2)}
    positions, delta = _model().get_rope_index(
        torch.zeros_like(types), mm_token_type_ids=types, image_grid_thw=by_kind[1], video_grid_thw=by_kind[2]
    )
    return positions[:, 0].numpy(), int(delta)


def rule_positions(kinds: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray, int]:
    """The published rule, token by token: a block, and a text token, begins at the highest position so far + 1."""
    placed: list[tuple[int, int, int]] = []
    media = iter(grids)
    highest = -1
    while len(placed) < len(kinds):
        start = highest + 1
        if kinds[len(placed)] == 0:
            block = [(start, start, start)]
        else:
            t, h, w = next(media)
            block = [
                (start + k, start + row, start + column)
                for k in range(t)
                for row in range(h // 2)
                for column in range(w // 2)
            ]
        placed += block
        highest = max(highest, *(max(p) for p in block))
    return np.array(placed, dtype=np.int64).T.reshape(3, -1), highest + 1 - len(kinds)
