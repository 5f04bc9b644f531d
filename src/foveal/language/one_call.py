"""Layers of a decoder as one call of compiled code, for the few tokens of a step that writes answers.

A layer of one token is fifteen small operations; what lies between them costs as much time as memory needs for a tenth
of the weights. `Whole` finds out whether a layer is made of parts that the kernel knows, and describes it; the result
is the same bits as that of the parts. Of a layer with another MLP (experts) the kernel computes the first half.
"""

import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from foveal.core.shapes import Float
from foveal.language.attention import Attention, NormedAttention
from foveal.language.cache import Cache
from foveal.nn.compact import CompactLinear
from foveal.nn.linear import Linear
from foveal.nn.mlp import GatedMLP
from foveal.nn.native import layer as native
from foveal.nn.native.tensors import readable
from foveal.nn.norm import RMSNorm
from foveal.nn.quantized_linear import QuantizedLinear
from foveal.nn.rope import Rotation

MOST = 64
"""Tokens up to which a layer is one call: with more the products are what takes time."""


@dataclass(frozen=True)
class Done:
    """What a call gave: the layer's result, or what goes on to the norm before its MLP."""

    x: Float[Tensor, "T D"]
    ends: bool


class Whole:
    """One layer as the kernel knows it, as long as nothing of it is replaced, moved or watched."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._layer: native.Layer | None = None

    def __call__(
        self, owner: Any, x: Float[Tensor, "T D"], rotation: Rotation, starts: Sequence[int], cache: Cache
    ) -> Done | None:
        """The result of the layer `owner`, with new keys and values in the cache; None where its parts have to compute
        it."""
        if not _suits(x, rotation):
            return None
        key = _key(owner)
        if key is None:
            return None
        if key != self._key:
            self._key, self._layer = key, _described(owner)
        if self._layer is None:
            return None
        attention = owner.attention
        if rotation.cos.shape[-1] != attention.head_dim:
            return None
        kind = (self._layer.groups, attention.head_dim, x.dtype, x.device)
        held = cache.held(attention.layer, starts, (kind, kind))
        if held is None:
            return None
        return Done(self._layer(x, rotation.cos, rotation.sin, held), self._layer.ends)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Whole, ()  # a copy of the layer, here or in another process, finds out for itself


def _suits(x: Float[Tensor, "T D"], rotation: Rotation) -> bool:
    cos, sin = rotation.cos, rotation.sin
    kind = torch.float32 if cos.dtype == torch.float32 else torch.bfloat16
    return (
        0 < len(x) <= MOST
        and not torch.is_grad_enabled()
        and readable(x, dtype=torch.bfloat16)
        and readable(cos, sin, dtype=kind)
        and native.computes(len(x))
        and not torch_module._global_forward_hooks
        and not torch_module._global_forward_pre_hooks
    )


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _parts(child)


def _key(owner: Any) -> tuple[Any, ...] | None:
    """Changes whenever the description of a layer does; None for one whose parts are watched or patched."""
    key: list[Any] = []
    mlp = owner.mlp
    known = [owner.norm1, owner.attention, *((owner.norm2, mlp) if type(mlp) is GatedMLP else ())]
    for part in itertools.chain.from_iterable(map(_parts, known)):
        if part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__:
            return None
        key.append(weakref.ref(part))
        if isinstance(part, QuantizedLinear):
            key.append(None if part.product is None else weakref.ref(part.product))
        elif isinstance(part, RMSNorm):
            key.append(part.eps)
        key += [None if tensor is None else tensor.data_ptr() for tensor in part._parameters.values()]
    return tuple(key)


def _described(owner: Any) -> native.Layer | None:
    attention, norm = _attention(owner.attention), _norm(owner.norm1)
    if attention is None or norm is None:
        return None
    return native.Layer(norm, attention, _mlp(owner.norm2, owner.mlp))


def _attention(module: nn.Module) -> native.Attention | None:
    if not isinstance(module, Attention) or type(module) not in (Attention, NormedAttention):
        return None
    layers: tuple[Any, ...] = (module.q, module.k, module.v) if module.qkv is None else (module.qkv.whole,)
    qkv, out = [_linear(layer) for layer in layers], _linear(module.out)
    norms = [_norm(norm) for norm in (module.q_norm, module.k_norm)] if isinstance(module, NormedAttention) else []
    if out is None or None in qkv or None in norms:
        return None
    heads = module.out.in_features // module.head_dim
    of_qkv = sum(layer.out_features for layer in layers) // module.head_dim
    return native.Attention(
        tuple(layer for layer in qkv if layer is not None), out,
        heads=heads, groups=(of_qkv - heads) // 2, size=module.head_dim,
        q_norm=norms[0] if norms else None, k_norm=norms[1] if norms else None,
    )  # fmt: skip


def _mlp(norm: nn.Module, module: nn.Module) -> native.GatedMLP | None:
    if type(module) is not GatedMLP:
        return None
    before, gate, up, down = _norm(norm), _linear(module.gate), _linear(module.up), _linear(module.down)
    if before is None or gate is None or up is None or down is None:
        return None
    return native.GatedMLP(before, gate, up, down)


def _norm(module: nn.Module) -> native.Norm | None:
    if type(module) is not RMSNorm or not readable(module.weight, dtype=torch.bfloat16):
        return None
    return native.Norm(module.weight, module.eps)


def _linear(module: nn.Module) -> native.Linear | None:
    if isinstance(module, QuantizedLinear):
        return None if module.product is None else native.Linear(module.product)
    if not isinstance(module, CompactLinear) and type(module) is not Linear:
        return None
    if module.bias is not None and not readable(module.bias, dtype=torch.bfloat16):
        return None
    if isinstance(module, CompactLinear):
        return native.Linear(module.compact, module.bias)
    return native.Linear(module.weight, module.bias) if readable(module.weight, dtype=torch.bfloat16) else None
