"""OpenVINO: build/peers/openvino/bin/python benchmarks/sides/openvino_side.py FOLDER

The stateful graph through the runtime itself, padded on the left, one request for each step: what OpenVINO GenAI's
pipeline runs inside, without its tokenizer."""

import sys
import time
from typing import Any

import numpy as np
from protocol import lengths, serve, words


def build() -> dict[str, Any]:
    import openvino as ov

    core = ov.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "bf16"}
    compiled = core.compile_model(core.read_model(f"{sys.argv[1]}/openvino_model.xml"), "CPU", options)
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.names}
    seeds = iter(range(10**6))

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in names:
            inputs["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        if "beam_idx" in names:
            inputs["beam_idx"] = np.arange(len(ids), dtype=np.int32)
        scores = request.infer(inputs)[0]
        return np.argmax(scores[:, -1], -1)[:, None].astype(np.int64)

    def decode(requests: int, context: int, steps: int) -> list[float]:
        request.reset_state()
        prompts = [words(n, next(seeds)) for n in lengths(requests, context)]
        longest = max(map(len, prompts))
        ids = np.array([[0] * (longest - len(p)) + p for p in prompts], np.int64)
        mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], np.int64)
        token, found = run(ids, mask), []
        for _ in range(steps + 1):
            mask = np.concatenate([mask, np.ones((requests, 1), np.int64)], 1)
            begun = time.perf_counter()
            token = run(token, mask)
            found.append(time.perf_counter() - begun)
        return found[1:]

    def prefill(tokens: int) -> list[float]:
        request.reset_state()
        ids = np.array([words(tokens, next(seeds))], np.int64)
        begun = time.perf_counter()
        run(ids, np.ones_like(ids))
        return [time.perf_counter() - begun]

    return {"decode": decode, "prefill": prefill}


serve(build)
