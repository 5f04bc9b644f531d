"""Attention over ragged packs in one call, where an accelerator has a kernel for it.

torch's own (`torch.nn.attention.varlen`, FlashAttention below it) comes first, the `flash_attn` package where torch's
is missing or refuses; elsewhere there is none, and `attend_packed` computes length by length.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from foveal.core.shapes import Float

Kernel = Literal["torch", "flash_attn"]

LARGEST_HEAD = 256


def kernel(device: torch.device, dtype: torch.dtype, size: int, value_size: int) -> Kernel | None:
    """What computes a ragged pack of this type and these head sizes in one call there; None where nothing does.

    FlashAttention takes half precision on CUDA devices from compute capability 8.0 on, keys and values of one head
    size, at most 256 and a multiple of 8.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if value_size != size or size % 8 or size > LARGEST_HEAD or not _recent(device):
        return None
    if _torch_varlen() is not None:
        return "torch"
    return "flash_attn" if _flash_attn() is not None else None


def attend_ragged(
    which: Kernel,
    q: Float[Tensor, "T H K"],
    k: Float[Tensor, "T G K"],
    v: Float[Tensor, "T G K"],
    starts: Sequence[int],
    *,
    causal: bool,
    scale: float | None,
) -> Float[Tensor, "T H K"]:
    """Every sequence attends to itself only; see `attend_packed`. Empty sequences are allowed."""
    bounds = torch.tensor(list(starts), dtype=torch.int32, device=q.device)
    longest = max(b - a for a, b in pairwise(starts))
    run: Any = _torch_varlen() if which == "torch" else _flash_attn()
    if which == "torch":
        window = (-1, 0) if causal else (-1, -1)
        shared = q.shape[1] != k.shape[1]
        return run(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=window, enable_gqa=shared)
    return run(q, k, v, bounds, bounds, longest, longest, softmax_scale=scale, causal=causal)


def _recent(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _torch_varlen() -> Callable[..., Any] | None:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@cache
def _flash_attn() -> Callable[..., Any] | None:
    if importlib.util.find_spec("flash_attn") is None:
        return None
    found: Callable[..., Any] = importlib.import_module("flash_attn").flash_attn_varlen_func
    return found
