"""Foveal: python benchmarks/sides/ours.py FOLDER [int8|int4]"""

import sys
import time
from typing import Any

import numpy as np
from protocol import lengths, serve, words


def build() -> dict[str, Any]:
    from dataclasses import replace

    from PIL import Image

    import foveal
    from foveal.core.packed import Packed
    from foveal.engine.engine import Engine
    from foveal.engine.options import EngineOptions
    from foveal.engine.request import Sampling

    extra = {"quantize": sys.argv[2]} if len(sys.argv) > 2 else {}
    model = foveal.load(sys.argv[1], **extra)
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

    def sampling(count: int) -> Sampling:
        return Sampling(max_tokens=count, ignore_eos=True)

    def decode(requests: int, context: int, steps: int) -> list[float]:
        engine = Engine(model, EngineOptions(max_requests=requests, prefix_cache=False))
        for length in lengths(requests, context):
            engine.add(prompt(length), sampling(steps + 40))
        found: list[float] = []
        while engine.busy and len(found) <= steps:
            begun = time.perf_counter()
            events = engine.step()
            spent = time.perf_counter() - begun
            if len(events) == requests:
                found.append(spent)
        return found[1:]

    def prefill(tokens: int) -> list[float]:
        engine = Engine(model, EngineOptions(step_tokens=tokens, prefix_cache=False))
        packed = prompt(tokens)
        begun = time.perf_counter()
        engine.add(packed, sampling(2))
        while not engine.step():
            pass
        return [time.perf_counter() - begun]

    def first(side_px: int, tokens: int) -> list[float]:
        engine = Engine(model, EngineOptions())
        picture = Image.fromarray(rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8))
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "the " * (tokens // 2)}]
        found = []
        for _ in range(2):
            begun = time.perf_counter()
            name = engine.add(model.process([{"role": "user", "content": content}]), sampling(2))
            while not engine.step():
                pass
            found.append(time.perf_counter() - begun)
            engine.abort(name)
        return found

    return {"decode": decode, "prefill": prefill, "first": first}


serve(build)
