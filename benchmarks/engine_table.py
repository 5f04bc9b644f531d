"""Results of `engine.py` as a page: what each side took, and the ratio turn by turn beside the goal."""

from statistics import median
from typing import Any

ORDER = ("decode1", "decode8", "prefill320", "prefill1300", "vision448", "vision1036", "first", "start", "memory")
GOALS = {
    ("decode1", "ours", "transformers"): 1.8,
    ("decode1", "ours", "openvino"): 1.1,
    ("decode1", "ours", "vllm"): 1.2,
    ("decode1", "ours-int8", "llama-q8_0"): 1.0,
    ("decode1", "ours-int8", "openvino-int8"): 0.75,
    ("decode1", "ours-int4", "llama-q4_0"): 0.6,
    ("decode1", "ours-int4", "openvino-int4"): 0.6,
    ("decode8", "ours", "transformers"): 2.5,
    ("decode8", "ours", "vllm"): 0.9,
    ("prefill320", "ours", "transformers"): 1.1,
    ("prefill1300", "ours", "transformers"): 1.1,
    ("vision448", "ours", "transformers"): 1.15,
    ("vision1036", "ours", "transformers"): 1.2,
    ("first", "ours", "transformers"): 1.15,
    ("first, same again", "ours", "transformers"): 20.0,
    ("start", "ours", "transformers"): 2.0,
    ("memory", "ours", "transformers"): 1.0,
}
"""(case, ours, peer) -> how many times as fast as the peer ours is to be at least; of memory, the peer's over ours."""

HEAD = """\
# Foveal beside its peers: Qwen2-VL-2B's shape, random weights, two threads

Every row is one run in which the sides took turns, alone on the machine; milliseconds are the median over turns, in
brackets the range; the ratio is the peer's time over ours in the same turn, median and range (above 1: ours is faster).
Peers other than transformers run the language model alone, so their memory is not comparable. Command of a row:

    OMP_NUM_THREADS=2 python benchmarks/engine.py CASE OURS PEER ...

decode1: one token after 512; decode8: one token for each of 8 requests with 128 to 384 tokens; prefill: a text prompt;
vision: tower and adapter on a square picture; first: messages to first token, one 448 px picture and 64 tokens of text;
start: start of the process to first token, 64 tokens of text, files in the page cache; memory: peak of a process that
answers a prompt of 1300 tokens with a 448 px picture with 32 tokens. Before decode1, decode8, prefill and first
Foveal's weights have been made compact (`Model.prepare`), as they are after two dozen tokens; the other cases begin as
a process does.

| case | peer | ours ms | peer ms | ratio | goal | peak memory ours / peer | conditions |
|---|---|---|---|---|---|---|---|
"""


def table(results: list[dict[str, Any]]) -> str:
    """All results as a page."""
    lines = []
    for result in sorted(results, key=lambda r: (ORDER.index(r["case"]), list(r["sides"]))):
        own, *others = result["sides"]
        sides = result["sides"]
        for index in (0, 1) if result["case"] == "first" else (None,):
            label = result["case"] + (", same again" if index else "")
            mine = milliseconds(sides[own], index)
            for other in others:
                theirs = milliseconds(sides[other], index)
                ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
                told = f"**{median(ratios):.2f}x** ({min(ratios):.2f} to {max(ratios):.2f})"
                reached = median(ratios)
                if label == "memory":
                    reached = sides[other]["peak_bytes"] / sides[own]["peak_bytes"]
                    told = f"**{reached:.2f}x**"
                goal = GOALS.get((label, own, other))
                verdict = "" if goal is None else f"{goal:g}x: {'met' if reached >= goal else 'not met'}"
                memory = " / ".join(f"{sides[side]['peak_bytes'] / 1e9:.2f} GB" for side in (own, other))
                lines.append(
                    f"| {label}, {own} | {other} | {shown(mine)} | {shown(theirs)} | {told} | {verdict} | {memory} | "
                    f"{result['conditions']} |"
                )
    return HEAD + "\n".join(lines) + "\n"


def milliseconds(side: dict[str, Any], index: int | None) -> list[float]:
    """Of each turn: the median of its steps, or one of its two times."""
    return [1000 * (median(turn) if index is None else turn[index]) for turn in side["turns"]]


def shown(values: list[float]) -> str:
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
