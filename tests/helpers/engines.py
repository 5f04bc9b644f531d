"""Tiny models of every family, requests for an engine, and what their answers have to be."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foveal
from foveal.engine.engine import Engine
from tests.helpers import checkpoints, deepseek_vl, deepseek_vl2, qwen2_5_vl, qwen3_vl, qwen_vl

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen_vl", "deepseek_vl", "deepseek_vl2")


def write(family: str, folder: Path) -> None:
    """A random tiny checkpoint; together they have all ways to see, to number places and to attend."""
    if family == "qwen2_vl":
        checkpoints.write(checkpoints.oracle(seed=7), folder)
    elif family == "qwen2_5_vl":
        checkpoints.write(qwen2_5_vl.oracle(seed=2), folder)
    elif family in ("qwen3_vl", "qwen3_vl_moe"):
        qwen3_vl.write(qwen3_vl.oracle(moe=family == "qwen3_vl_moe", seed=3), folder)
    elif family == "qwen_vl":
        qwen_vl.write(folder, seed=4)
    elif family == "deepseek_vl":
        deepseek_vl.write(deepseek_vl.oracle(hybrid=True, seed=5), folder)
    else:
        deepseek_vl2.write("mla_greedy", folder)


def model(family: str, folder: Path) -> foveal.Model:
    """The model that `write` leaves, in float32."""
    write(family, folder)
    return foveal.load(folder, dtype="float32", device="cpu")


@torch.inference_mode()
def alone(vlm: foveal.Model, packed: foveal.Packed, tokens: int) -> list[int]:
    """The greedy answer without any engine: one pass over the prompt, then one token after the other."""
    network, banned = vlm.network, sorted(vlm.processor.banned_ids)
    cache = network.language.new_cache(1)
    scores = network(packed, cache=cache, at=packed.starts[1:] - 1).logits
    ids: list[int] = []
    while True:
        scores[:, banned] = -torch.inf
        ids.append(int(scores.argmax()))
        if len(ids) == tokens or ids[-1] in vlm.stop_ids:
            return ids
        scores = network.step(packed, [0], ids[-1:], cache)


def drive(
    engine: Engine,
    requests: Mapping[str, foveal.Packed],
    arrivals: Sequence[tuple[int, str]],
    *,
    tokens: int,
    aborts: Mapping[int, Sequence[str]] | None = None,
    preempt: Sequence[int] = (),
    **options: Any,
) -> dict[str, list[int]]:
    """Runs requests that come before given steps; `aborts` names those that end before a step, and before each
    of `preempt` the latest answer has to give way. The answers by name."""
    said: dict[str, list[int]] = {}
    coming = sorted(arrivals)
    gone: set[str] = set()
    sampling = foveal.Sampling(max_tokens=tokens, **options)
    number = 0
    while coming or engine.busy:
        while coming and coming[0][0] <= number:
            _, name = coming.pop(0)
            engine.add(requests[name], sampling, id=name)
            said[name] = []
        for name in (aborts or {}).get(number, ()):
            engine.abort(name)
            gone.add(name)
        if number in preempt and engine._scheduler.running:
            engine._scheduler.preempt(engine._scheduler.running[-1])
        for event in engine.step():
            assert event.id not in gone, "an aborted request goes on"
            assert event.finish_reason != "error", event.error
            said[event.id].append(event.token)
        number += 1
        assert number < 5000
    assert_empty(engine)
    return {name: ids for name, ids in said.items() if name not in gone}


def assert_empty(engine: Engine) -> None:
    """Nobody runs, and no block is counted for anybody."""
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_in_use) == (0, 0, 0)
    assert stats.blocks_cached + stats.blocks_free == engine._pool.total
    held = [b for b in engine._pool._blocks.values() if b.holders]
    assert not held
    assert len(engine._pool._blocks) == stats.blocks_cached


def pictures(rng: np.random.Generator, count: int, side: int = 60) -> list[dict[str, Any]]:
    """Parts with random pictures of up to `side` pixels a side."""
    from tests.helpers.layouts import picture

    return [{"type": "image", "image": picture(rng, 20, side)} for _ in range(count)]
