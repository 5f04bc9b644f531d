"""Linear layers of bfloat16 by the compiled kernel, which reads weights as they lie, or compact without loss."""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Float
from foveal.nn.native.build import DENSE, library
from foveal.nn.native.memory import reserve

DOTS, TILES = 1, 2
"""The kernel's ways: dot products of rows, and tiles (AMX)."""
DOT_ROWS = 16
"""Rows of inputs up to which dot products are as fast as torch's operator; tiles always are."""

STRIP, TILE_COLUMNS, TILE_BYTES, TABLE_BYTES = 32, 32, 1536, 64
OUTLIERS = 128
"""One of how many weights may have an exponent that its strip's table lacks; with more the form does not pay."""


class CompactStruct(ctypes.Structure):
    """What the kernel knows of a compact weight."""

    _fields_ = (
        ("body", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("outliers", ctypes.c_void_p),
        ("tiles", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Compact:
    """A weight [rows, columns] in 12 bits a value, without loss (`compact.h`): tiles of mantissas, signs and numbers of
    exponents; and a list of the values whose exponents have no number."""

    body: Tensor
    starts: Tensor
    outliers: Tensor
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        return self.body.nbytes + self.starts.nbytes + self.outliers.nbytes

    def struct(self) -> CompactStruct:
        """Addresses, valid as long as this weight is there."""
        tiles = -(-self.columns // TILE_COLUMNS)
        return CompactStruct(self.body.data_ptr(), self.starts.data_ptr(), self.outliers.data_ptr(), tiles)


@cache
def _functions() -> ctypes.CDLL | None:
    """The library with the types of its functions; None where there is none."""
    found = library(DENSE)
    if found is not None:
        address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        of_compact = ctypes.POINTER(CompactStruct)
        found.foveal_dense_way.argtypes, found.foveal_dense_way.restype = [], number
        found.foveal_dense.argtypes = [address, of_compact, address, address, address, size, size, size, number]
        found.foveal_dense.restype = number
        found.foveal_compact.argtypes = [address, size, size, address, address, address, size]
        found.foveal_compact.restype = None
        found.foveal_open.argtypes, found.foveal_open.restype = [of_compact, size, size, address], None
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
    weight: Float[Tensor, "O I"] | Compact,
    bias: Float[Tensor, "O"] | None = None,
    *,
    by: int | None = None,
) -> Float[Tensor, "T O"]:
    """x W^T + bias of bfloat16, all contiguous; ask `computes` first. `by` is a way, the best one by default.

    A row's result is the same bits whatever other rows come with it, and whatever form the weight has. Only tiles
    compute with compact weights.
    """
    whole = weight if isinstance(weight, Tensor) else None
    rows, columns = weight.shape if isinstance(weight, Tensor) else (weight.rows, weight.columns)
    compact = None if isinstance(weight, Tensor) else ctypes.byref(weight.struct())
    if compact is not None and (by or way()) != TILES:
        raise FovealError("compact weights are computed with tiles (AMX) only; `opened` gives plain ones.")
    out = torch.empty(x.shape[0], rows, dtype=torch.bfloat16)
    if out.numel() and _must().foveal_dense(
        None if whole is None else whole.data_ptr(), compact, None if bias is None else bias.data_ptr(),
        x.data_ptr(), out.data_ptr(), rows, columns, x.shape[0], by or way(),
    ):  # fmt: skip
        raise MemoryError(f"no memory for a product of {x.shape[0]} rows with {(rows, columns)} weights")
    return out


def compacted(weight: Float[Tensor, "O I"]) -> Compact | None:
    """The compact form of a contiguous weight of bfloat16 on the CPU; None where too many exponents are rare."""
    rows, columns = weight.shape
    strips, tiles = -(-rows // STRIP), -(-columns // TILE_COLUMNS)
    most = max(1, STRIP * columns // OUTLIERS)
    body = reserve((strips, TABLE_BYTES + tiles * TILE_BYTES), torch.uint8)
    room, found = torch.empty(strips, most, dtype=torch.int64), torch.empty(strips, dtype=torch.int64)
    _must().foveal_compact(weight.data_ptr(), rows, columns, body.data_ptr(), room.data_ptr(), found.data_ptr(), most)
    if bool((found > most).any()):
        return None
    starts = torch.zeros(strips + 1, dtype=torch.int64)
    torch.cumsum(found, 0, out=starts[1:])
    outliers = room[torch.arange(most) < found[:, None]]
    return Compact(body, starts, outliers, rows, columns)


def opened(weight: Compact) -> Float[Tensor, "O I"]:
    """The weight as it was, every bit."""
    out = torch.empty(weight.rows, weight.columns, dtype=torch.bfloat16)
    _must().foveal_open(ctypes.byref(weight.struct()), weight.rows, weight.columns, out.data_ptr())
    return out


def _must() -> ctypes.CDLL:
    functions = _functions()
    if functions is None:
        raise FovealError("the kernel for bfloat16 layers is not there; ask `computes` first.")
    return functions
