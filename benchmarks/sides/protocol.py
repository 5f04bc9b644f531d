"""What a side of a comparison speaks: one JSON object a line, questions on standard input, answers on standard output.

    {"do": "decode", "requests": 1, "context": 512, "steps": 24}   ->  {"seconds": [of each step]}
    {"do": "prefill", "tokens": 512}                               ->  {"seconds": [one]}
    {"do": "vision", "side_px": 448}                               ->  {"seconds": [one]}, tower and adapter
    {"do": "first", "side_px": 448, "tokens": 64}                  ->  {"seconds": [new picture, same again]}
    {"do": "whole", "side_px": 448, "tokens": 1300, "answer_tokens": 32}
                                                                   ->  {"seconds": [one]}, tokens with the picture's
    {"do": "peak"}                                                 ->  {"bytes": peak resident memory}

Standard library only: every side runs in an environment of its own.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any


def serve(build: Callable[[], dict[str, Callable[..., Any]]]) -> None:
    """Builds the side, says {"ready": true}, and answers until its input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def say(answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    ways = build()
    say({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        do = question.pop("do")
        if do == "peak":
            say({"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
        elif do in ways:
            say({"seconds": ways[do](**question)})
        else:
            say({"error": f"{do} is not measured here"})


def lengths(requests: int, context: int) -> list[int]:
    """Ragged prompts: from half of `context` to half as much again, `context` in the mean."""
    if requests == 1:
        return [context]
    return [round(context * (0.5 + i / (requests - 1))) for i in range(requests)]


def words(count: int, seed: int) -> list[int]:
    """Plain token ids that every side knows."""
    state, found = seed * 2654435761 + 1, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        found.append(100 + state % 1000)
    return found
