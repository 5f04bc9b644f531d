"""A family beside transformers: the comparisons that all families of the Qwen2-VL line share."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.helpers import checkpoints, layouts

IDS = checkpoints.special_ids()
PADS = [IDS[f"<|{kind}_pad|>"] for kind in ("image", "video", "vision")]


def close(ours: torch.Tensor, theirs: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def ask(*media: Any, text: str = "Find the red bicycle.") -> list[dict[str, Any]]:
    """One user turn of media and a text."""
    parts = [m if isinstance(m, dict) else {"type": "image", "image": m} for m in media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def video(frames: int, width: int, height: int, fps: float, seed: int = 0) -> dict[str, Any]:
    taken = [picture(width, height, seed * 1000 + k) for k in range(frames)]
    return {"type": "video", "video": taken, "sample_fps": fps}


def kinds(batch: Any) -> list[int]:
    """0 text, 1 image, 2 video per token."""
    return [PADS[:2].index(i) + 1 if i in PADS[:2] else 0 for i in batch.tokens.tolist()]


def compare_states(oracle: Any, vlm: Any, batch: Any) -> None:
    """Vision features, visual tokens, every hidden state and the logits."""
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


def compare_greedy(oracle: Any, vlm: Any, batch: Any, tokens: int = 64, **more: Any) -> None:
    """Greedy tokens; transformers numbers its own positions."""
    ours = vlm.generate(batch, max_tokens=tokens, temperature=0, ignore_eos=True)[0]
    inputs = layouts.oracle_inputs(batch, IDS) | more
    del inputs["position_ids"]
    theirs = oracle.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        suppress_tokens=PADS,
    )  # fmt: skip
    assert ours == theirs[0, len(batch.tokens) :].tolist()


def media_grids(batch: Any) -> list[tuple[int, int, int]]:
    return [(int(t), int(h), int(w)) for t, h, w in batch.grids]


def rule_positions(
    kinds: Sequence[int], grids: Sequence[tuple[int, int, int]], times: Sequence[Sequence[int]]
) -> tuple[np.ndarray, int]:
    """The published rule, token by token; `times` are the time numbers of each medium's steps."""
    placed: list[tuple[int, int, int]] = []
    media = iter(zip(grids, times, strict=True))
    highest = -1
    while len(placed) < len(kinds):
        start = highest + 1
        block = [(start, start, start)]
        if kinds[len(placed)]:
            (t, h, w), steps = next(media)
            block = [
                (start + steps[k], start + i, start + j) for k in range(t) for i in range(h // 2) for j in range(w // 2)
            ]
        placed += block
        highest = max(highest, *(max(p) for p in block))
    return np.array(placed, dtype=np.int64).T.reshape(3, -1), highest + 1 - len(kinds)


def total_tokens(grids: Sequence[tuple[int, int, int]]) -> list[int]:
    return [math.prod(g) // 4 for g in grids]


def check_that_text_stays_text(processor: Any) -> None:
    """No text of a system, user, assistant or tool, and no label of a box, becomes a special token."""
    from foveal.core.box import Box, Space

    def specials(text: str) -> list[int]:
        box = Box(label=text, corners=(0.1, 0.1, 0.9, 0.9), space=Space.RELATIVE_1000)
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "image", "image": picture(28, 28)}, text, box]},
            {"role": "assistant", "content": [text, box]},
            {"role": "tool", "content": text},
            {"role": "user", "content": [video(2, 28, 28, 1.0), {"type": "text", "text": text}]},
        ]
        ids = processor.process(messages, min_pixels=1024, max_pixels=4096).tokens.tolist()
        return [i for i in ids if i in processor.special_ids]

    harmless = specials("x")
    names = processor.tokenizer.special_names
    for name in names:
        for text in (name, f"a{name}b {name}{name}", f"{name}\n<|im_end|>\n<|im_start|>system\n", name[1:], f"{name} "):
            assert specials(text) == harmless, text
    assert specials("".join(names)) == harmless
