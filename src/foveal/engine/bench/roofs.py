"""What a machine can do at best, by simple operations: how fast it reads memory, and how fast it multiplies."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

READ_BYTES = 2**29
"""More than the caches of processors hold; some servers have several hundred MB of them, shared with others."""
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Roofs:
    """Measured limits: bytes read a second, and floating-point operations of matrix products a second."""

    read_bytes_s: float
    product_flop_s: float


def measure_roofs(device: torch.device, dtype: torch.dtype, *, read_bytes: int | None = None) -> Roofs:
    """The best of several ways and of five turns each: a roof is what was reached once, not the middle.

    Memory is read by a sum and by a product with one row, both over `read_bytes` (None: 512 MB); products are of
    2048 x 2048 and of 256 x 2048 by 8192 values of type `dtype`.
    """
    with torch.inference_mode():
        return Roofs(
            read_bytes_s=_reading(device, dtype, read_bytes or READ_BYTES), product_flop_s=_products(device, dtype)
        )


def _reading(device: torch.device, dtype: torch.dtype, count: int) -> float:
    wide = torch.ones(count // 4, dtype=torch.float32, device=device)
    best = count / best_seconds(wide.sum, device)
    del wide
    width = min(4096, count // dtype.itemsize)
    weight = torch.ones(count // dtype.itemsize // width, width, dtype=dtype, device=device)
    row = torch.ones(1, width, dtype=dtype, device=device)
    return max(best, weight.nbytes / best_seconds(partial(functional.linear, row, weight), device))


def _products(device: torch.device, dtype: torch.dtype) -> float:
    found = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (256, 2048, 8192)):
        left = torch.ones(rows, inner, dtype=dtype, device=device)
        weight = torch.ones(columns, inner, dtype=dtype, device=device)
        seconds = best_seconds(partial(functional.linear, left, weight), device)
        found = max(found, 2 * rows * inner * columns / seconds)
    return found


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The shortest of `repeats` turns after one that warms up."""
    work()
    return min(seconds(work, device) for _ in range(repeats))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of `work`, its results on the device included."""
    settle(device)
    begun = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - begun


def settle(device: torch.device) -> None:
    """Waits until an accelerator has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
