"""From the features of a picture's patches to one vector: attention pooling with a learned query."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.errors import InputError
from foveal.core.shapes import Float, Int64
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear, linear
from foveal.nn.mlp import MLP, Activation
from foveal.nn.norm import LayerNorm
from foveal.vision.config import PlainConfig
from foveal.vision.plain import ACTIVATION, PlainTower
from foveal.vision.vit import frame_starts


class ProbePool(nn.Module):
    """Attention pooling of SigLIP's image tower (Zhai et al. 2022, *Scaling Vision Transformers*, section 2.1: MAP).

    A learned probe asks every picture's features once (multi-head attention), then a norm and an MLP follow with a
    residual around both. `probe` and `qkv` keep the published shapes: [1, 1, D], and rows q | k | v.
    """

    plain_layers: ClassVar[tuple[str, ...]] = ("qkv",)  # its thirds are used apart

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm = LayerNorm(width, eps)
        self.mlp = MLP(width, mlp_width, activation)
        nn.init.normal_(self.probe, std=width**-0.5)

    def forward(self, x: Float[Tensor, "P D"], starts: Sequence[int]) -> Float[Tensor, "N D"]:
        """Features of pictures end to end -> one row a picture; `starts` holds the N + 1 boundaries.

        Neighbouring pictures of one length are computed as one batch. Raises `InputError` for a picture of no patch.
        """
        width = x.shape[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = linear(self.probe[0], weight[:width], bias[:width]).view(1, self.heads, 1, -1)
        k, v = linear(x, weight[width:], bias[width:]).view(len(x), 2, self.heads, width // self.heads).unbind(1)
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


class ProbeTower(nn.Module):
    """A plain tower and the pooling of its features: pictures -> one vector each (SigLIP, section 3.1)."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        c = config
        self.tower = PlainTower(c)
        self.pool = ProbePool(c.width, c.heads, c.mlp_width, ACTIVATION[c.activation], c.eps)

    def forward(
        self, patches: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "M D"]:
        """Vectors, not normalised, of the M pictures that `grids` counts. Offers "vision" [P, D] to `keep`."""
        features = self.tower(patches, grids, keep)
        if keep:
            keep.offer("vision", features)
        return self.pool(features, frame_starts(grids, extra=self.tower.config.class_token))
