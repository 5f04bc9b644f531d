"""Products with quantized weights by torch's own operators on a CPU, where the compiled kernel cannot be had."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.nn.quantized import Codes, rounded_inputs

TILE = 64
"""The 4-bit operator wants whole tiles of rows."""
GROUPS = (32, 64, 128, 256)
"""Groups that the 4-bit operator knows."""


def stock(codes: Codes) -> Callable[[Tensor], Tensor] | None:
    """x [T, I] -> [T, O] for one weight (its order left out); None where no operator fits."""
    rows, columns = codes.codes.shape
    if codes.bits == 8 and codes.group == columns and codes.zeros is None:
        return _eight(codes)
    if codes.bits == 4 and codes.group in GROUPS and rows % TILE == 0:
        return _four(codes)
    return None


def _eight(codes: Codes) -> Callable[[Tensor], Tensor]:
    rows, columns = codes.codes.shape
    signed = (codes.codes.to(torch.int16) - codes.middle).to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(signed, None)
    scales, zeros = codes.scales[:, 0].float(), torch.zeros(rows, dtype=torch.int32)

    def product(x: Tensor) -> Tensor:
        whole, steps = rounded_inputs(x, columns)
        shifted = (whole.flatten(1) + 128).to(torch.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            out: Tensor = torch.ops.onednn.qlinear_pointwise(
                shifted, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
        return (out * steps[:, 0]).to(x.dtype)

    return product


def _four(codes: Codes) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.codes.int(), 1)
    scales = codes.scales.float()
    zeros = torch.zeros_like(scales) if codes.zeros is None else (codes.middle - codes.zeros.float()) * scales
    both = torch.stack((scales.t(), zeros.t()), dim=-1).to(torch.bfloat16).contiguous()

    def product(x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:  # the operator is slow in other types
            return F.linear(x, codes.dense(x.dtype))
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), packed, codes.group, both)

    return product
