"""What lies between linear layers in inference in bfloat16 on a CPU, by the compiled kernel: one call each, not many.

Every function takes contiguous tensors that `suits` accepts. A row's result is the same bits whatever comes with it.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Float, Int64
from foveal.nn.native.build import ROWS, library
from foveal.nn.native.tensors import readable


class _Attention(ctypes.Structure):
    _fields_ = (
        ("q", ctypes.c_void_p),
        ("new_k", ctypes.c_void_p),
        ("new_v", ctypes.c_void_p),
        ("q_row", ctypes.c_int64),
        ("k_row", ctypes.c_int64),
        ("v_row", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("value_size", ctypes.c_int64),
        ("value_row", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


@cache
def _functions() -> ctypes.CDLL | None:
    found = library(ROWS)
    if found is not None:
        address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        found.foveal_rms_norm.argtypes = [address, address, address, size, size, number]
        found.foveal_gate.argtypes = [address, address, address, size]
        found.foveal_quick_gelu.argtypes = [address, address, size]
        found.foveal_rotate.argtypes = [address, size, address, address, ctypes.c_int, address, size, size, size]
        found.foveal_largest.argtypes = [address, address, size, size]
        for name in ("foveal_rms_norm", "foveal_gate", "foveal_quick_gelu", "foveal_rotate", "foveal_largest"):
            getattr(found, name).restype = None
        found.foveal_attend.argtypes, found.foveal_attend.restype = [ctypes.POINTER(_Attention)], ctypes.c_int
    return found


def suits(*tensors: Tensor) -> bool:
    """Whether the kernel is there and may compute with these, which have to be bfloat16."""
    return readable(*tensors, dtype=torch.bfloat16) and _functions() is not None


def rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*B D"]:
    """x / sqrt(mean(x^2) + eps) * weight, rounded once."""
    out = torch.empty_like(x)
    width = weight.shape[0]
    _must().foveal_rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps)
    return out


def gate(gate: Float[Tensor, "*B D"], up: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """silu(gate) * up, written over `gate`."""
    _must().foveal_gate(gate.data_ptr(), up.data_ptr(), gate.data_ptr(), gate.numel())
    return gate


def quick_gelu(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """x * sigmoid(1.702 x), rounded after every step and written over x: new memory would cost more than all of it."""
    _must().foveal_quick_gelu(x.data_ptr(), x.data_ptr(), x.numel())
    return x


def largest(x: Float[Tensor, "T D"]) -> list[int]:
    """Where the largest value of every row is, the first of equals; -1 where one of the row is not finite."""
    found = torch.empty(x.shape[0], dtype=torch.int64)
    _must().foveal_largest(x.data_ptr(), found.data_ptr(), *x.shape)
    return found.tolist()


def rotates(x: Float[Tensor, "T H K"], cos: Float[Tensor, "T 1 K"], sin: Float[Tensor, "T 1 K"]) -> bool:
    """Whether `rotate` may turn these: heads of a token lie in a row; cosines are bfloat16 or float32."""
    kind = torch.float32 if cos.dtype == torch.float32 else torch.bfloat16
    return x.stride()[1:] == (x.shape[2], 1) and suits(x[:1]) and readable(cos, sin, dtype=kind)


def rotate(
    x: Float[Tensor, "T H K"], cos: Float[Tensor, "T 1 K"], sin: Float[Tensor, "T 1 K"]
) -> Float[Tensor, "T H K"]:
    """The halves of every head turned, as torch's operators do it: in bfloat16 with each product and sum rounded, or in
    float32 with the result rounded."""
    out = torch.empty(x.shape, dtype=x.dtype)
    wide = cos.dtype == torch.float32
    _must().foveal_rotate(x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr(), wide, out.data_ptr(), *x.shape)
    return out


@dataclass(frozen=True)
class Held:
    """Where the keys [G, S, K] and values [G, S, L] of a sequence lie, with one new token in its place: S are seen."""

    keys: Float[Tensor, "G S K"]
    values: Float[Tensor, "G S L"]
    seen: int


def seen_table(held: Sequence[Held]) -> Int64[np.ndarray, "T 5"]:
    """What the kernel knows of `held`, a row each; valid as long as the tensors are there."""
    return np.array(
        [(h.keys.data_ptr(), h.values.data_ptr(), h.keys.stride(0), h.values.stride(0), h.seen) for h in held], np.int64
    )


def attend(
    q: Float[Tensor, "T H K"],
    new_k: Float[Tensor, "T G K"] | None,
    new_v: Float[Tensor, "T G L"] | None,
    held: Sequence[Held],
    *,
    scale: float | None = None,
) -> Float[Tensor, "T H L"]:
    """Each row attends to the first `seen` tokens of what is held for it, of which the last gets its new key and value.

    Where there are no new ones the tensors have them already. All rows are one call; keys of one row are added up in
    one order, 256 at a time.
    """
    first = held[0]
    rows, heads, size = q.shape
    groups, value_size = first.keys.shape[0], first.values.shape[2]
    table = seen_table(held)
    out = q.new_empty(rows, heads, value_size)
    call = _Attention(
        q=q.data_ptr(),
        new_k=None if new_k is None else new_k.data_ptr(),
        new_v=None if new_v is None else new_v.data_ptr(),
        q_row=heads * size,
        k_row=groups * size,
        v_row=groups * value_size,
        out=out.data_ptr(),
        seen=table.ctypes.data,
        rows=rows,
        heads=heads,
        groups=groups,
        size=size,
        value_size=value_size,
        value_row=first.values.stride(1),
        scale=size**-0.5 if scale is None else scale,
    )
    if _must().foveal_attend(ctypes.byref(call)):
        raise MemoryError(f"no memory for attention of {rows} tokens")
    return out


def _must() -> ctypes.CDLL:
    functions = _functions()
    if functions is None:
        raise FovealError("the kernel for rows of bfloat16 is not there; ask `suits` first.")
    return functions
