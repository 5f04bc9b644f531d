"""llama.cpp: build/peers/llama/bin/python benchmarks/sides/llama_side.py FILE.gguf

Its C interface through llama-cpp-python; two threads; one sequence for each request."""

import sys
import time
from typing import Any

import numpy as np
from protocol import lengths, serve, words


def build() -> dict[str, Any]:
    import llama_cpp as c

    c.llama_backend_init()
    settings = c.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = c.llama_model_load_from_file(sys.argv[1].encode(), settings)
    vocabulary = c.llama_model_n_vocab(model) if hasattr(c, "llama_model_n_vocab") else 151936
    seeds = iter(range(10**6))

    def context_for(requests: int, tokens: int) -> Any:
        options = c.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = requests * tokens, 2048, 512
        options.n_threads = options.n_threads_batch = 2
        options.n_seq_max = requests
        options.flash_attn_type = 1 if hasattr(options, "flash_attn_type") else 0
        return c.llama_init_from_model(model, options)

    def run(context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, sequence, whether scores are wanted)."""
        batch = c.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        c.llama_batch_free(batch)

    def best(context: Any, row: int) -> int:
        scores = np.ctypeslib.as_array(c.llama_get_logits_ith(context, row), shape=(vocabulary,))
        return int(scores.argmax())

    def decode(requests: int, context: int, steps: int) -> list[float]:
        sizes = lengths(requests, context)
        held = context_for(requests, max(sizes) + steps + 64)
        try:
            for sequence, length in enumerate(sizes):
                prompt = words(length, next(seeds))
                run(held, [(t, i, sequence, i == length - 1) for i, t in enumerate(prompt)])
            tokens, found = [100] * requests, []
            for step in range(steps + 1):
                begun = time.perf_counter()
                run(held, [(t, sizes[s] + step, s, True) for s, t in enumerate(tokens)])
                tokens = [best(held, s) for s in range(requests)]
                found.append(time.perf_counter() - begun)
            return found[1:]
        finally:
            c.llama_free(held)

    def prefill(tokens: int) -> list[float]:
        held = context_for(1, tokens + 64)
        try:
            prompt = words(tokens, next(seeds))
            begun = time.perf_counter()
            run(held, [(t, i, 0, i == tokens - 1) for i, t in enumerate(prompt)])
            best(held, tokens - 1)
            return [time.perf_counter() - begun]
        finally:
            c.llama_free(held)

    return {"decode": decode, "prefill": prefill}


serve(build)
