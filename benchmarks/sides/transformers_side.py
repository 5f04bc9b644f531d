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

    def picture(side_px: int) -> Any:
        return Image.fromarray(rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8))

    def check(seen: Any, side_px: int) -> None:
        if len(seen["pixel_values"]) != (side_px // 14) ** 2:
            raise ValueError(f"a picture of {side_px} px gives {len(seen['pixel_values'])} patches: resized")

    @torch.inference_mode()
    def vision(side_px: int) -> list[float]:
        seen = images(picture(side_px), return_tensors="pt")
        check(seen, side_px)
        begun = time.perf_counter()
        model.model.visual(seen["pixel_values"].bfloat16(), grid_thw=seen["image_grid_thw"])
        return [time.perf_counter() - begun]

    def answer(shown: Any, text: list[int], tokens: int) -> None:
        seen = images(shown, return_tensors="pt")
        check(seen, shown.width)
        count = int(seen["image_grid_thw"].prod()) // 4
        start, end = config.vision_start_token_id, config.vision_end_token_id
        ids = torch.tensor([[start, *[config.image_token_id] * count, end, *text]])
        model.generate(
            input_ids=ids, pixel_values=seen["pixel_values"], image_grid_thw=seen["image_grid_thw"],
            mm_token_type_ids=(ids == config.image_token_id).int(), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    @torch.inference_mode()
    def first(side_px: int, tokens: int) -> list[float]:
        shown, text = picture(side_px), words(tokens, next(seeds))
        found = []
        for _ in range(2):
            begun = time.perf_counter()
            answer(shown, text, 1)
            found.append(time.perf_counter() - begun)
        return found

    @torch.inference_mode()
    def whole(side_px: int, tokens: int, answer_tokens: int) -> list[float]:
        shown = picture(side_px)
        text = words(tokens - 2 - (side_px // 28) ** 2, next(seeds))
        begun = time.perf_counter()
        answer(shown, text, answer_tokens)
        return [time.perf_counter() - begun]

    return {"decode": decode, "prefill": prefill, "vision": vision, "first": first, "whole": whole}


serve(build)
