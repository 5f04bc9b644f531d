"""Layout of quantized weights, and their products with activations by the compiled kernel.

Weights lie in blocks of 64 rows. In a block come the columns, 4 at a time (8 with 4 bits); of these 4 lines of 16
rows; of each row its 4 codes. With 4 bits, byte i of a line holds the codes of columns i and i + 4 of the 8, the first
in its low half. Rows are filled up with zeros to a whole block. Scales and zeros lie as [block, group, 64].
"""

import ctypes
import threading
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.nn.native.build import QUANTIZED, library
from foveal.nn.native.memory import reserve

ROWS = 64
SOME_ROWS = 64 * ROWS
STEPS = (128, 64, 32)
"""Neighbouring inputs that share a scale when they are rounded to 8 bits: the first that divides a weight's groups."""
AMX_ROWS = 3
"""Rows of inputs from which on AMX is faster (measured: from 4 on by far, at 2 slower)."""
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def lines(codes: Tensor, bits: int) -> Tensor:
    """Codes [O, I], one each, in the layout of the kernel; on a CPU in memory of large pages."""
    rows, columns = codes.shape
    shape = (-(-rows // ROWS), columns // (32 // bits), 4, 16, 4)
    place = reserve if codes.device.type == "cpu" else partial(torch.empty, device=codes.device)
    out = place(shape, dtype=torch.uint8)
    for first in range(0, rows, SOME_ROWS):  # of many rows the copies on the way would be large
        out[first // ROWS : (first + SOME_ROWS) // ROWS] = _lines(codes[first : first + SOME_ROWS], bits)
    return out


def _lines(codes: Tensor, bits: int) -> Tensor:
    columns = codes.shape[1]
    full = F.pad(codes, (0, 0, 0, -len(codes) % ROWS))
    if bits == 8:
        return full.view(-1, 4, 16, columns // 4, 4).permute(0, 3, 1, 2, 4)
    split = full.view(-1, 4, 16, columns // 8, 2, 4).permute(0, 3, 1, 4, 2, 5)
    return split[:, :, :, 0] | split[:, :, :, 1] << 4


def unlined(packed: Tensor, bits: int, rows: int) -> Tensor:
    """The codes [O, I] of `lines`."""
    if bits == 8:
        return packed.permute(0, 2, 3, 1, 4).reshape(len(packed) * ROWS, -1)[:rows]
    both = torch.stack((packed & 15, packed >> 4), dim=4)  # [block, columns / 8, 4, 16, 2, 4]
    return both.permute(0, 2, 3, 1, 4, 5).reshape(len(packed) * ROWS, -1)[:rows]


def by_block(values: Tensor) -> Tensor:
    """Scales or zeros [O, G] in the layout of the kernel."""
    return F.pad(values, (0, 0, 0, -len(values) % ROWS)).view(-1, ROWS, values.shape[1]).transpose(1, 2).contiguous()


def unblocked(values: Tensor, rows: int) -> Tensor:
    """The scales or zeros [O, G] of `by_block`."""
    return values.transpose(1, 2).reshape(-1, values.shape[1])[:rows]


def input_step(group: int) -> int | None:
    """Inputs that are rounded together beside weights in groups of `group`; None where the kernel cannot compute."""
    return next((step for step in STEPS if group % step == 0), None)


class _Weight(ctypes.Structure):
    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("bits", ctypes.c_int),
        ("group", ctypes.c_int),
        ("step", ctypes.c_int),
        ("scale_type", ctypes.c_int),
    )


@cache
def _functions() -> ctypes.CDLL | None:
    """The library with the types of its functions; None where there is none."""
    found = library(QUANTIZED)
    if found is not None:
        address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.foveal_room.argtypes, found.foveal_room.restype = [address, size], size
        found.foveal_linear.argtypes = [address, address, address, size, number, size, address]
        found.foveal_linear.restype = None
    return found


class _Room(threading.local):
    """Working space of a thread; it only grows."""

    def __init__(self) -> None:
        self.space = torch.empty(0, dtype=torch.uint8)

    def address(self, size: int) -> int:
        if self.space.numel() < size + 64:
            self.space = torch.empty(size + 64, dtype=torch.uint8)
        return -(-self.space.data_ptr() // 64) * 64


_room = _Room()


class Product:
    """x -> x W^T + bias for one weight, by the compiled kernel. A copy of a module makes its own."""

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bias: Tensor | None,
        *,
        rows: int,
        columns: int,
        bits: int,
    ) -> None:
        found, group = _functions(), columns // scales.shape[1]
        step = input_step(group)
        if found is None or step is None:
            raise ValueError("the kernel cannot compute this weight; ask `computes` first")
        wide = None if bias is None else bias.detach().float().contiguous()
        self._kept = (codes, scales, zeros, wide)
        self.rows, self.columns, self.step = rows, columns, step
        self._weight = _Weight(
            codes=codes.data_ptr(),
            scales=scales.data_ptr(),
            zeros=None if zeros is None else zeros.data_ptr(),
            bias=None if wide is None else wide.data_ptr(),
            rows=rows,
            columns=columns,
            bits=bits,
            group=group,
            step=step,
            scale_type=TYPES[scales.dtype],
        )
        self.address = ctypes.addressof(self._weight)
        self._linear, self._size = found.foveal_linear, found.foveal_room

    def __call__(self, x: Tensor, *, amx_rows: int = AMX_ROWS) -> Tensor:
        """x [T, I], float32 or bfloat16 and contiguous, to [T, O] of the same type."""
        count = len(x)
        out = torch.empty(count, self.rows, dtype=x.dtype)
        if count:
            room = _room.address(self._size(self.address, count))
            self._linear(self.address, x.data_ptr(), out.data_ptr(), count, TYPES[x.dtype], amx_rows, room)
        return out

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return (type(None), ())


def computes(scales: Tensor, columns: int) -> bool:
    """Whether the compiled kernel is there and can compute a weight with these scales [*, G, *] or [O, G]."""
    return scales.device.type == "cpu" and scales.dtype in TYPES and columns % 8 == 0 and _functions() is not None
