"""vLLM for CPUs: build/peers/vllm/bin/python benchmarks/sides/vllm_side.py FOLDER

One process, no compilation, no prefix cache; a step is a step of its engine."""

import os
import sys
import time
from typing import Any

from protocol import lengths, serve, words

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


def build() -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        sys.argv[1], skip_tokenizer_init=True, dtype="bfloat16", max_model_len=2048, enforce_eager=True,
        enable_prefix_caching=False, max_num_seqs=16, max_num_batched_tokens=2048,
    ).llm_engine  # fmt: skip
    seeds = iter(range(10**6))

    def add(count: int, tokens: int) -> None:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0, detokenize=False)
        engine.add_request(str(next(seeds)), {"prompt_token_ids": words(count, next(seeds))}, params)

    def decode(requests: int, context: int, steps: int) -> list[float]:
        for length in lengths(requests, context):
            add(length, steps + 24)
        found: list[float] = []
        while engine.has_unfinished_requests():
            begun = time.perf_counter()
            outputs = engine.step()
            spent = time.perf_counter() - begun
            if len(outputs) == requests:
                found.append(spent)
        return found[1 : 1 + steps]

    def prefill(tokens: int) -> list[float]:
        add(tokens, 1)
        begun = time.perf_counter()
        while engine.has_unfinished_requests():
            engine.step()
        return [time.perf_counter() - begun]

    return {"decode": decode, "prefill": prefill}


if __name__ == "__main__":
    serve(build)
