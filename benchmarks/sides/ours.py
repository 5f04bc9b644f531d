"""Foveal: python benchmarks/sides/ours.py FOLDER bf16|int8|int4"""

import sys
import time
from typing import Any

import numpy as np
from protocol import lengths, serve, words


def build() -> dict[str, Any]:
    from dataclasses import replace

    import torch
    from PIL import Image

    import foveal
    from foveal.core.packed import Packed
    from foveal.engine.engine import Engine
    from foveal.engine.options import EngineOptions
    from foveal.engine.request import Sampling

    _, folder, form = sys.argv
    model = foveal.load(folder, quantize=None if form == "bf16" else form)
    template = model.process([{"role": "user", "content": "?"}])
    rng = np.random.default_rng(0)
    seeds = iter(range(10**6))

    def prompt(count: int) -> Packed:
        positions = np.tile(np.arange(count, dtype=np.int64), (len(template.positions), 1))
        ids = np.array(words(count, next(seeds)), np.int64)
        return replace(
            template, tokens=ids, positions=positions, starts=np.array([0, count]), deltas=np.zeros(1, np.int64),
            spans=(),
        )  # fmt: skip

    def picture(side_px: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8))

    def question(side_px: int, tokens: int) -> Any:
        """A picture with the words that make `tokens` tokens with it, the conversation's own included."""
        content: list[Any] = [{"type": "image", "image": picture(side_px)}, {"type": "text", "text": "the"}]
        while (missing := tokens - len(model.process([{"role": "user", "content": content}]).tokens)) > 0:
            content[1]["text"] += " the" * max(1, missing // 3)
        return [{"role": "user", "content": content}]

    def sampling(count: int) -> Sampling:
        return Sampling(max_tokens=count, temperature=0.0, ignore_eos=True)

    def until_first(engine: Engine, packed: Packed) -> None:
        name = engine.add(packed, sampling(2))
        while not engine.step():
            pass
        engine.abort(name)

    def settled(engine: Engine) -> None:
        """The weights have the form that they have after two dozen tokens; peers give theirs a form while they load."""
        until_first(engine, prompt(16))
        model.prepare()

    def decode(requests: int, context: int, steps: int) -> list[float]:
        engine = Engine(model, EngineOptions(max_requests=requests, prefix_cache=False))
        for length in lengths(requests, context):
            engine.add(prompt(length), sampling(steps + 40))
        while not engine.step():
            pass
        model.prepare()
        found: list[float] = []
        while engine.busy and len(found) <= steps:
            begun = time.perf_counter()
            events = engine.step()
            spent = time.perf_counter() - begun
            if len(events) == requests:
                found.append(spent)
        return found[1:]

    def prefill(tokens: int) -> list[float]:
        engine = Engine(model, EngineOptions(prefix_cache=False))
        settled(engine)
        packed = prompt(tokens)
        begun = time.perf_counter()
        until_first(engine, packed)
        return [time.perf_counter() - begun]

    @torch.inference_mode()
    def vision(side_px: int) -> list[float]:
        content = [{"type": "image", "image": picture(side_px)}]
        packed = model.process([{"role": "user", "content": content}])
        if len(packed.patches) != (side_px // 14) ** 2:
            raise ValueError(f"a picture of {side_px} px gives {len(packed.patches)} patches: resized")
        begun = time.perf_counter()
        model.prepared.see(packed)
        return [time.perf_counter() - begun]

    def first(side_px: int, tokens: int) -> list[float]:
        engine = Engine(model, EngineOptions())
        messages = question(side_px, tokens + 2 + (side_px // 28) ** 2)
        settled(engine)
        found = []
        for _ in range(2):
            begun = time.perf_counter()
            until_first(engine, model.process(messages))
            found.append(time.perf_counter() - begun)
        return found

    def whole(side_px: int, tokens: int, answer_tokens: int) -> list[float]:
        messages = question(side_px, tokens)
        begun = time.perf_counter()
        model.generate(model.process(messages), max_tokens=answer_tokens, temperature=0, ignore_eos=True)
        return [time.perf_counter() - begun]

    return {"decode": decode, "prefill": prefill, "vision": vision, "first": first, "whole": whole}


serve(build)
