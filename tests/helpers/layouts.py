"""Random conversations of text, images and videos."""

from typing import Any

import numpy as np
from PIL import Image

WORDS = "What is in this picture? Find the red bicycle. There are three cats. 描述这张图片 (12,34) \n\n x = 1 猫".split(
    " "
)


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, size=rng.integers(1, 8)))


def picture(rng: np.random.Generator, low: int = 20, high: int = 120) -> Image.Image:
    width, height = rng.integers(low, high, 2)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def video(rng: np.random.Generator, frames: int | None = None) -> dict[str, Any]:
    """A list of frames with the rate at which they were taken."""
    width, height = (int(n) for n in rng.integers(20, 100, 2))
    count = frames or int(rng.integers(1, 7))
    taken = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]
    return {"type": "video", "video": taken, "sample_fps": float(rng.choice([0.5, 1.0, 2.0]))}


def conversation(rng: np.random.Generator, *, media: int = 3, videos: bool = True) -> list[dict[str, Any]]:
    """One to three turns; media anywhere in the user's."""
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": sentence(rng)})
    for turn in range(int(rng.integers(1, 4))):
        parts: list[dict[str, Any]] = [{"type": "text", "text": sentence(rng)}]
        for _ in range(int(rng.integers(0, media + 1))):
            if videos and rng.random() < 0.3:
                parts.append(video(rng))
            else:
                parts.append({"type": "image", "image": picture(rng)})
            if rng.random() < 0.5:
                parts.append({"type": "text", "text": sentence(rng)})
        if turn:
            messages.append({"role": "assistant", "content": sentence(rng)})
        messages.append({"role": "user", "content": [parts[i] for i in rng.permutation(len(parts))]})
    return messages


def oracle_inputs(batch: Any, ids: dict[str, int]) -> dict[str, Any]:
    """A packed batch of one sequence as transformers' forward takes it, positions included."""
    import torch

    kinds = [m.kind for m in batch.media]
    patches = np.split(batch.patches, np.cumsum(batch.grids.prod(1))[:-1]) if kinds else []
    tokens = torch.from_numpy(batch.tokens)[None]
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "position_ids": torch.from_numpy(batch.positions)[:, None],
        "mm_token_type_ids": (tokens == ids["<|image_pad|>"]).int() + 2 * (tokens == ids["<|video_pad|>"]).int(),
    }
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [i for i, k in enumerate(kinds) if k == kind]
        if chosen:
            inputs[pixels] = torch.from_numpy(np.concatenate([patches[i] for i in chosen]))
            inputs[grid] = torch.from_numpy(batch.grids[chosen])
    return inputs
