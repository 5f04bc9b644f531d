"""From the features of a picture's patches to one vector: attention pooling with a learned query."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.errors import InputError
from foveal.core.shapes import Float
from foveal.nn.mlp import MLP, Activation
from foveal.nn.norm import LayerNorm


class ProbePool(nn.Module):
    """Attention pooling of SigLIP's image tower (Zhai et al. 2022, *Scaling Vision Transformers*, section 2.1: MAP).

    A learned probe asks every picture's features once (multi-head attention), then a norm and an MLP follow with a
    residual around both. `probe` and `qkv` keep the published shapes: [1, 1, D], and rows q | k | v.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = LayerNorm(width, eps)
        self.mlp = MLP(width, mlp_width, activation)
        nn.init.normal_(self.probe, std=width**-0.5)

    def forward(self, x: Float[Tensor, "P D"], starts: Sequence[int]) -> Float[Tensor, "N D"]:
        """Features of pictures end to end -> one row a picture; `starts` holds the N + 1 boundaries.

        Neighbouring pictures of one length are computed as one batch. Raises `InputError` for a picture of no patch.
        """
        width = x.shape[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(self.probe[0], weight[:width], bias[:width]).view(1, self.heads, 1, -1)
        k, v = F.linear(x, weight[width:], bias[width:]).view(len(x), 2, self.heads, width // self.heads).unbind(1)
        parts, index = [], 0
        lengths = [stop - start for start, stop in itertools.pairwise(starts)]
        while index < len(lengths):
            length, count = lengths[index], 1
            if length == 0:
                raise InputError(f"picture {index} has no patch; it needs at least one to be pooled.")
            while index + count < len(lengths) and lengths[index + count] == length:
                count += 1
            rows = slice(starts[index], starts[index + count])
            keys, values = (t[rows].view(count, length, *t.shape[1:]).transpose(1, 2) for t in (k, v))
            asked = F.scaled_dot_product_attention(q.expand(count, -1, -1, -1), keys, values)
            parts.append(asked.reshape(count, width))
            index += count
        pooled = self.out(torch.cat(parts) if parts else x[:0])
        return pooled + self.mlp(self.norm(pooled))


def probe_pool_parameters(width: int, mlp_width: int) -> int:
    """Numbers that a `ProbePool` learns."""
    d, f = width, mlp_width
    return d + (d + 1) * 3 * d + (d + 1) * d + 2 * d + (d + 1) * f + (f + 1) * d
