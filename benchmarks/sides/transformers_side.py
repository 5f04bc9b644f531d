"""transformers: python benchmarks/sides/transformers_side.py FOLDER

Batches are padded on the left, as its `generate` needs; steps are timed inside `generate`, by a criterion that it asks
after each one."""

import sys
import time
from typing import Any

import numpy as np
from protocol import lengths, serve, words


def build() -> dict[str, Any]:
    import torch
    from PIL import Image
    from transformers import Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    model = Qwen2VLForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    images = Qwen2VLImageProcessorPil.from_pretrained(sys.argv[1])
    rng = np.random.default_rng(0)
    seeds = iter(range(10**6))
    config = model.config

    def clock(found: list[float]) -> Any:
        def note(ids: Any, _: Any, **__: Any) -> Any:
            found.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        return note

    @torch.inference_mode()
    def decode(requests: int, context: int, steps: int) -> list[float]:
        prompts = [words(n, next(seeds)) for n in lengths(requests, context)]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        stamps: list[float] = []
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=steps + 2, min_new_tokens=steps + 2, do_sample=False,
            stopping_criteria=[clock(stamps)], pad_token_id=0,
        )  # fmt: skip
        return np.diff(stamps)[1:].tolist()

    @torch.inference_mode()
    def prefill(tokens: int) -> list[float]:
        ids = torch.tensor([words(tokens, next(seeds))])
        begun = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return [time.perf_counter() - begun]

    @torch.inference_mode()
    def first(side_px: int, tokens: int) -> list[float]:
        picture = Image.fromarray(rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8))
        text = words(tokens, next(seeds))
        found = []
        for _ in range(2):
            begun = time.perf_counter()
            seen = images(picture, return_tensors="pt")
            count = int(seen["image_grid_thw"].prod()) // 4
            start, end = config.vision_start_token_id, config.vision_end_token_id
            ids = torch.tensor([[start, *[config.image_token_id] * count, end, *text]])
            kinds = (ids == config.image_token_id).int()
            model.generate(
                input_ids=ids, pixel_values=seen["pixel_values"], image_grid_thw=seen["image_grid_thw"],
                mm_token_type_ids=kinds, max_new_tokens=1, do_sample=False, pad_token_id=0,
            )  # fmt: skip
            found.append(time.perf_counter() - begun)
        return found

    return {"decode": decode, "prefill": prefill, "first": first}


serve(build)
