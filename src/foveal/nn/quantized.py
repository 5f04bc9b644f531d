"""Weights as small integers with a scale for every group of neighbours: rounding, and the way back.

    weight[o, i] = (codes[o, i] - zero[o, g]) * scale[o, g],    g the group of input i

Codes are unsigned, from 0 to 2^bits - 1. Weights that are rounded here are symmetric: every zero is the middle,
2^(bits - 1).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.errors import ConfigError, WeightsError

BITS = (4, 8)
GROUPS = (128, 64, 32, 16)
"""Group sizes that are chosen, best for speed first; another may be asked for."""

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of the scale under which nothing is cut off that are tried for every group of 4-bit weights. Cutting off the
outermost of few values costs less than coarse steps for all."""


@dataclass(frozen=True, kw_only=True)
class Codes:
    """A weight [O, I] as small integers; see above.

    Attributes:
        bits: 4 or 8.
        codes: [O, I] uint8, one code each.
        scales: [O, G], of any floating type; I / G neighbours share one.
        zeros: [O, G] uint8; None where all are the middle.
        order: [I]; column j of the codes belongs to input order[j] (GPTQ's `desc_act`). None: they lie in order.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    order: Tensor | None = None

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape
        groups = self.scales.shape[-1]
        if self.bits not in BITS:
            raise ConfigError(f"weights of {self.bits} bits; {' and '.join(map(str, BITS))} are computed.")
        if self.scales.shape != (rows, groups) or not groups or columns % groups:
            raise WeightsError(f"scales {list(self.scales.shape)} do not fit a weight of {rows} x {columns}.")
        if self.zeros is not None and self.zeros.shape != self.scales.shape:
            raise WeightsError(f"zeros {list(self.zeros.shape)} and scales {list(self.scales.shape)} differ in shape.")

    @property
    def group(self) -> int:
        """Neighbours that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [O, I], its inputs in their own order."""
        rows, columns = self.codes.shape
        zeros = self.middle if self.zeros is None else self.zeros[..., None].float()
        grouped = self.codes.view(rows, -1, self.group).float() - zeros
        weight = (grouped * self.scales[..., None].float()).view(rows, columns).to(dtype)
        if self.order is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self.order, weight)


def common_group(columns: list[int], wanted: int) -> int:
    """The group size of layers with so many inputs: `wanted`, or the largest usual one below it that divides all.

    Raises `ConfigError` when there is none.
    """
    if wanted < 1:
        raise ConfigError(f"groups of {wanted} weights; a number above 0 is expected, {GROUPS[0]} is usual.")
    for size in (wanted, *(g for g in GROUPS if g < wanted)):
        if all(count % size == 0 for count in columns):
            return size
    raise ConfigError(f"layers of {sorted(set(columns))} inputs have no groups of {wanted} or a smaller usual size.")


def rounded(
    weight: Tensor, *, bits: int, group: int, importance: Tensor | None = None, kind: torch.dtype | None = None
) -> Codes:
    """The symmetric codes of a weight [O, I] in groups of `group` inputs; scales have the type `kind`, or the weight's.

    8 bits reach from -127 to 127 of the largest absolute value. For 4 bits (-8 to 7) every group takes the scale of
    SHRINKS x that value / 7 whose squared error is least, weighed by `importance` [I] if given.

    Raises `WeightsError` for a weight that is not finite.
    """
    rows, columns = weight.shape
    if columns % group:
        raise ConfigError(f"{columns} inputs have no groups of {group}.")
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(rows, columns // group, dtype=kind or weight.dtype, device=weight.device)
    step = max(1, 2**20 // columns)  # rows at a time, so that temporaries stay in the processor's cache
    for first in range(0, rows, step):
        some = slice(first, first + step)
        codes[some], scales[some] = _rounded(weight[some], bits, group, importance, scales.dtype)
    return Codes(bits=bits, codes=codes, scales=scales)


def _rounded(
    weight: Tensor, bits: int, group: int, importance: Tensor | None, kind: torch.dtype
) -> tuple[Tensor, Tensor]:
    if not bool(weight.isfinite().all()):
        raise WeightsError("a weight that is to be quantized is not finite; the checkpoint is damaged.")
    blocks = weight.float().view(len(weight), -1, group)
    top = (1 << (bits - 1)) - 1
    bottom = -top if bits == 8 else -top - 1
    tiny = torch.finfo(torch.float16).tiny
    widest = blocks.abs().amax(-1) / top
    weights = None if importance is None else importance.float().view(1, -1, group)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for share in SHRINKS if bits == 4 else (1.0,):
        scales = (widest * share).clamp_min(tiny).to(kind)
        wide = scales[..., None].float()
        codes = (blocks / wide).round_().clamp_(bottom, top)
        if bits == 8:
            best = (codes, scales, scales)
            break
        error = (codes * wide - blocks).square_()
        total = (error if weights is None else error * weights).sum(-1)
        if best is None:
            best = (codes, scales, total)
        else:
            less = total < best[2]
            best = (
                torch.where(less[..., None], codes, best[0]),
                torch.where(less, scales, best[1]),
                torch.where(less, total, best[2]),
            )
    if best is None:
        raise ConfigError("no scale is tried; SHRINKS is empty.")
    return (best[0] + (1 << (bits - 1))).to(torch.uint8).view_as(weight), best[1]


def joined(parts: list[Codes]) -> Codes | None:
    """The codes of several weights with the same inputs as those of one, rows end to end; None where they differ in
    kind."""
    first = parts[0]
    orders = [p.order for p in parts]
    alike = all(
        p.bits == first.bits
        and p.group == first.group
        and p.scales.dtype == first.scales.dtype
        and p.codes.shape[1] == first.codes.shape[1]
        and (p.zeros is None) == (first.zeros is None)
        for p in parts
    )
    same_order = all(
        o is orders[0] or (o is not None and orders[0] is not None and torch.equal(o, orders[0])) for o in orders
    )
    if not alike or not same_order:
        return None
    return replace(
        first,
        codes=torch.cat([p.codes for p in parts]),
        scales=torch.cat([p.scales for p in parts]),
        zeros=None if first.zeros is None else torch.cat([p.zeros for p in parts if p.zeros is not None]),
    )


def rounded_inputs(x: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Inputs [T, I] as whole numbers from -127 to 127 [T, N, step] and their scales [T, N, 1], both float32."""
    blocks = x.float().view(len(x), -1, step)
    most = blocks.abs().amax(-1, keepdim=True)
    factor = torch.where(most > 0, torch.tensor(127.0, device=x.device).div(most), 0.0)
    return (blocks * factor).round(), most / 127


def product(x: Tensor, codes: Codes, step: int) -> Tensor:
    """x [T, I] times the weight, [T, O] float32, as the native kernel computes it: inputs rounded to 8 bits in blocks
    of `step`. It is what the kernel is checked against."""
    if codes.order is not None:
        x = x[:, codes.order]
    whole, scales = rounded_inputs(x, step)
    return F.linear((whole * scales).flatten(1), replace(codes, order=None).dense())
