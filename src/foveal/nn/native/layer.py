"""A decoder layer for few tokens by the compiled kernel: one call instead of fifteen."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Float
from foveal.nn.native import dense
from foveal.nn.native.build import LAYER, library
from foveal.nn.native.products import AMX_ROWS, Product
from foveal.nn.native.rows import Held, seen_table

Weight = Float[Tensor, "O I"] | dense.Compact | Product


class _Linear(ctypes.Structure):
    _fields_ = (
        ("w", ctypes.c_void_p),
        ("compacted", ctypes.POINTER(dense.CompactStruct)),
        ("quantized", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("norm1", ctypes.c_void_p),
        ("norm2", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("qkv", _Linear * 3),
        ("out", _Linear),
        ("gate", _Linear),
        ("up", _Linear),
        ("down", _Linear),
        ("parts", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("eps1", ctypes.c_float),
        ("eps2", ctypes.c_float),
        ("q_eps", ctypes.c_float),
        ("k_eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("amx", ctypes.c_int64),
        ("wide", ctypes.c_int),
        ("way", ctypes.c_int),
    )


@cache
def _functions() -> ctypes.CDLL | None:
    found = library(LAYER)
    if found is not None:
        found.foveal_layer.argtypes = [ctypes.POINTER(_Layer), ctypes.POINTER(_Step)]
        found.foveal_layer.restype = ctypes.c_int
    return found


def computes(rows: int) -> bool:
    """Whether the kernel is there, and computes so many tokens as the parts by themselves would be."""
    return _functions() is not None and dense.computes(rows)


@dataclass(frozen=True)
class Norm:
    """An RMSNorm: its weight, and what it adds to the mean square."""

    weight: Float[Tensor, "D"]
    eps: float


@dataclass(frozen=True)
class Linear:
    """A linear layer; a `Product` has its bias itself."""

    weight: Weight
    bias: Float[Tensor, "O"] | None = None

    def struct(self) -> _Linear:
        """Its addresses, valid as long as its tensors are there."""
        bias = None if self.bias is None or isinstance(self.weight, Product) else self.bias.data_ptr()
        if isinstance(self.weight, Product):
            return _Linear(None, None, self.weight.address, None, self.weight.rows, self.weight.columns)
        if isinstance(self.weight, dense.Compact):
            compact = ctypes.pointer(self.weight.struct())
            return _Linear(None, compact, None, bias, self.weight.rows, self.weight.columns)
        return _Linear(self.weight.data_ptr(), None, None, bias, *self.weight.shape)


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention: one linear layer for queries, keys and values together, or one each."""

    qkv: tuple[Linear, ...]
    out: Linear
    heads: int
    groups: int
    size: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True)
class GatedMLP:
    """SwiGLU and the norm before it."""

    norm: Norm
    gate: Linear
    up: Linear
    down: Linear


class Layer:
    """A pre-norm layer, or only its attention. It knows addresses and keeps no tensor: whoever has it has these too.

    Attributes:
        ends: whether its MLP is part of it.
        groups: heads of keys and values.
    """

    def __init__(self, norm: Norm, attention: Attention, mlp: GatedMLP | None) -> None:
        self.ends, self.groups = mlp is not None, attention.groups
        a = attention
        self._layer = _Layer(
            norm1=norm.weight.data_ptr(), eps1=norm.eps, out=a.out.struct(), parts=len(a.qkv),
            heads=a.heads, groups=a.groups, size=a.size, scale=a.size**-0.5,
        )  # fmt: skip
        for number, part in enumerate(a.qkv):
            self._layer.qkv[number] = part.struct()
        if a.q_norm is not None and a.k_norm is not None:
            self._layer.q_norm, self._layer.q_eps = a.q_norm.weight.data_ptr(), a.q_norm.eps
            self._layer.k_norm, self._layer.k_eps = a.k_norm.weight.data_ptr(), a.k_norm.eps
        if mlp is not None:
            self._layer.norm2, self._layer.eps2 = mlp.norm.weight.data_ptr(), mlp.norm.eps
            self._layer.gate, self._layer.up = mlp.gate.struct(), mlp.up.struct()
            self._layer.down = mlp.down.struct()

    def __call__(
        self, x: Float[Tensor, "T D"], cos: Float[Tensor, "T 1 K"], sin: Float[Tensor, "T 1 K"], held: Sequence[Held]
    ) -> Float[Tensor, "T D"]:
        """x + attention(norm(x)), and on top of it x + mlp(norm(x)), of one token a row; `held` is written to.

        All tensors are contiguous; x is bfloat16, cosines are that or float32.
        """
        functions = _functions()
        if functions is None:
            raise FovealError("the kernel for layers is not there; ask `computes` first.")
        out = x.clone()
        table = seen_table(held)
        step = _Step(
            x=out.data_ptr(), cos=cos.data_ptr(), sin=sin.data_ptr(), seen=table.ctypes.data, rows=x.shape[0],
            width=x.shape[1], amx=AMX_ROWS, wide=cos.dtype == torch.float32, way=dense.way() or dense.DOTS,
        )  # fmt: skip
        if functions.foveal_layer(ctypes.byref(self._layer), ctypes.byref(step)):
            raise MemoryError(f"no memory for a layer of {len(x)} tokens")
        return out
