"""Products with bfloat16 weights by the compiled kernel, which reads them as they lie."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Float
from foveal.nn.native.build import DENSE, library

DOTS, TILES = 1, 2
"""The kernel's ways: dot products of rows, and tiles (AMX)."""
DOT_ROWS = 16
"""Rows of inputs up to which dot products are as fast as torch's operator; tiles always are."""


@cache
def _functions() -> ctypes.CDLL | None:
    """The library with the types of its functions; None where there is none."""
    found = library(DENSE)
    if found is not None:
        address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.foveal_dense_way.argtypes, found.foveal_dense_way.restype = [], number
        found.foveal_dense.argtypes = [address, address, address, address, size, size, size, number]
        found.foveal_dense.restype = number
    return found


@cache
def way() -> int | None:
    """The best way of this processor; None without the kernel."""
    found = _functions()
    return None if found is None else int(found.foveal_dense_way())


def computes(rows: int) -> bool:
    """Whether the kernel is there, and the better choice for so many rows of inputs."""
    best = way()
    return best == TILES or (best == DOTS and rows <= DOT_ROWS)


def product(
    x: Float[Tensor, "T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None = None,
    *,
    by: int | None = None,
) -> Float[Tensor, "T O"]:
    """x W^T + bias of bfloat16, all contiguous; ask `computes` first. `by` is a way, the best one by default.

    A row's result is the same bits whatever other rows come with it.
    """
    functions = _functions()
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
    if functions is None:
        raise FovealError("the kernel for bfloat16 layers is not there; ask `computes` first.")
    if out.numel() and functions.foveal_dense(
        weight.data_ptr(), None if bias is None else bias.data_ptr(), x.data_ptr(), out.data_ptr(),
        weight.shape[0], weight.shape[1], x.shape[0], by or way(),
    ):  # fmt: skip
        raise MemoryError(f"no memory for a product of {x.shape[0]} rows with {tuple(weight.shape)} weights")
    return out
