"""Linear layers of bfloat16: torch's operator, packed by oneDNN, own kernel with weights as they lie and compact ones.

The sides take turns; weights come from memory.

OMP_NUM_THREADS=2 python benchmarks/linear.py            # a table; about a minute
"""

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.nn.native import dense

SHAPES = ((8960, 1536), (1536, 8960), (1536, 1536), (256, 1536))
ROWS = (1, 8, 16, 64, 128, 320, 1300)
BYTES = 120e6
"""Weights that are gone through, so that none is in a core's cache when its turn comes."""


def sides(weights: list[Tensor], x: Tensor) -> dict[str, Callable[[int], Tensor]]:
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
    compact = [c for w in weights if (c := dense.compacted(w)) is not None] if dense.way() == dense.TILES else []
    return {
        "torch": lambda i: F.linear(x, weights[i]),
        "packed": lambda i: torch.ops.mkldnn._linear_pointwise(x, packed[i], None, "none", [], ""),
        "own": lambda i: dense.product(x, weights[i]),
        **({"compact": lambda i: dense.product(x, compact[i])} if compact else {}),
    }


def timed(compute: Callable[[int], Tensor], count: int) -> float:
    begun = time.perf_counter()
    for i in range(count):
        compute(i)
    return (time.perf_counter() - begun) / count


@torch.inference_mode()
def main() -> None:
    if dense.way() is None:
        raise SystemExit("the own kernel cannot be built or run here")
    print("| weight | rows | torch | packed (oneDNN) | own kernel | own, compact | torch / own | torch / compact |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for rows, columns in SHAPES:
        size = rows * columns * 2
        weights = [torch.randn(rows, columns).bfloat16() for _ in range(max(2, int(BYTES / size)))]
        for count in ROWS:
            compared = sides(weights, torch.randn(count, columns).bfloat16())
            turns = [{name: timed(c, len(weights)) for name, c in compared.items()} for _ in range(6)][1:]
            told = {name: median(turn[name] for turn in turns) for name in compared}
            found = {name: median(turn["torch"] / turn[name] for turn in turns) for name in compared}
            names = ("torch", "packed", "own", "compact")
            cells = [f"{1000 * told[name]:.3g} ms" if name in told else "" for name in names]
            ratios = [f"{found[name]:.2f}x" if name in told else "" for name in names[2:]]
            print("|", " | ".join([f"{columns} to {rows}", str(count), *cells, *ratios]), "|", flush=True)


if __name__ == "__main__":
    main()
