"""Resampler: a fixed number of learned queries look at all patches of a picture once (Qwen-VL, section 2.1)."""

from itertools import groupby
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.nn.embed import resized_positions, sincos_table
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear, linear
from foveal.nn.norm import LayerNorm


class Resampler(nn.Module):
    """One layer of cross-attention without residual, a norm, and a linear map.

    Queries and keys carry 2-D sine-cosine positions, values none. The table of side x side positions is
    that of the queries; keys get it resized to the picture's grid. It is part of the checkpoint (rounded to the
    checkpoint's type) and is not learned: `requires_grad` is off.
    """

    plain_layers: ClassVar[tuple[str, ...]] = ("qkv",)  # its thirds are used apart

    def __init__(self, vision_width: int, width: int, *, side: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.side, self.heads = side, heads
        self.positions = nn.Parameter(sincos_table(side, width), requires_grad=False)
        self.query = nn.Parameter(torch.empty(side**2, width))
        self.kv = Linear(vision_width, width, bias=False)
        self.norm_query = LayerNorm(width, eps)
        self.norm_kv = LayerNorm(width, eps)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm_after = LayerNorm(width, eps)
        self.project = nn.Parameter(torch.empty(width, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.normal_(self.project, std=width**-0.5)

    def forward(
        self, x: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "M D"]:
        """Patches of all pictures row by row, and each one's grid; side ** 2 tokens a picture."""
        x = self.norm_kv(self.kv(x))
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        query = linear(self.norm_query(self.query) + self.positions, weights[0], biases[0])
        parts, start = [], 0
        for (height, width), same in groupby(grids[:, 1:].tolist()):
            count = sum(1 for _ in same)
            stop = start + count * height * width
            own = x[start:stop].view(count, height * width, -1)
            key = linear(own + resized_positions(self.positions, self.side, height, width), weights[1], biases[1])
            value = linear(own, weights[2], biases[2])
            parts.append(self._attend(query.expand(count, -1, -1), key, value))
            start = stop
        attended = self.out(torch.cat(parts))
        if keep:
            keep.offer("adapter.attended", attended)
        return self.norm_after(attended) @ self.project

    def _attend(
        self, q: Float[Tensor, "N Q D"], k: Float[Tensor, "N S D"], v: Float[Tensor, "N S D"]
    ) -> Float[Tensor, "M D"]:
        q, k, v = (x.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
