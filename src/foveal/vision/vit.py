"""The vision transformer of the Qwen2-VL line: packed images of any size, 2-D rotary positions.

One pre-norm block serves the towers of this line; a tower chooses norm, MLP and positions.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.nn.attention import attend_packed
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear, linear
from foveal.nn.mlp import MLP, quick_gelu
from foveal.nn.norm import LayerNorm
from foveal.nn.packed import ROWS, PackedLinear
from foveal.nn.rope import Rotation, grid_rotation
from foveal.vision.config import VisionConfig


class PatchEmbed(nn.Module):
    """One linear map of a patch's pixels; the weight keeps the published convolution's shape [D, C, t, p, p]."""

    def __init__(self, config: VisionConfig, *, bias: bool = False) -> None:
        super().__init__()
        c = config
        self.weight = nn.Parameter(torch.empty(c.width, c.channels, c.temporal, c.patch, c.patch))
        self.bias = nn.Parameter(torch.zeros(c.width)) if bias else None
        nn.init.normal_(self.weight, std=c.patch_values**-0.5)

    def forward(self, patches: Float[Tensor, "P C"]) -> Float[Tensor, "P D"]:
        weight = self.weight.flatten(1)
        return linear(patches.to(weight.dtype), weight, self.bias)


class VisionAttention(nn.Module):
    """Self-attention within segments, q, k and v from one projection; positions may be rotary."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(
        self, x: Float[Tensor, "P D"], rotation: Rotation | None, starts: Sequence[int]
    ) -> Float[Tensor, "P D"]:
        if rotation is not None and isinstance(self.qkv, PackedLinear):
            q, k, v = self._turned(x, rotation).unbind(1)
            return self.out(attend_packed(q, k, v, starts, causal=False).flatten(1))
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        if rotation is None:
            return self.out(attend_packed(q, k, v, starts, causal=False).flatten(1))
        # Rotated queries and keys get no name here: they are freed before the last product.
        return self.out(attend_packed(rotation(q), rotation(k), v, starts, causal=False).flatten(1))

    def _turned(self, x: Float[Tensor, "P D"], rotation: Rotation) -> Float[Tensor, "P 3 H K"]:
        """Queries and keys already rotated, and values; some rows at a time, rotated where they lie."""
        out = x.new_empty(len(x), self.qkv.out_features)
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            part = self.qkv(x[rows]).view(-1, 3, self.heads, x.shape[1] // self.heads)
            rotation.part(rows).turn_(part[:, :2])
            out[rows] = part.flatten(1)
        return out.view(len(x), 3, self.heads, -1)


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, norm: Callable[[], nn.Module], attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1 = norm()
        self.attention = attention
        self.norm2 = norm()
        self.mlp = mlp

    def forward(
        self, x: Float[Tensor, "P D"], rotation: Rotation | None, starts: Sequence[int]
    ) -> Float[Tensor, "P D"]:
        x = x + self.attention(self.norm1(x), rotation, starts)
        return x + self.mlp(self.norm2(x))


class VisionTower(nn.Module):
    """Qwen2-VL's tower (section 2.1): every frame pair of every image attends within itself."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = PatchEmbed(config)
        self.blocks = nn.ModuleList(
            VisionBlock(
                lambda: LayerNorm(config.width, config.eps),
                VisionAttention(config.width, config.heads),
                MLP(config.width, config.mlp_width, quick_gelu),
            )
            for _ in range(config.depth)
        )

    def forward(
        self, patches: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "P D"]:
        """Patches of all media in merge-group order, and each medium's grid (time, height, width in patches).

        The result keeps the order. Memory grows linearly with the patches.
        """
        rows, cols = merge_order(grids, self.config.merge)
        device = patches.device
        rotation = grid_rotation(
            torch.from_numpy(rows).to(device),
            torch.from_numpy(cols).to(device),
            head_dim=self.config.head_dim,
            theta=self.config.theta,
        )
        starts = frame_starts(grids)
        x = self.patch(patches)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, starts)
            if keep:
                keep.offer(f"vision.blocks.{index}", x)
        return x


def frame_starts(grids: Int64[np.ndarray, "N 3"], extra: int = 0) -> list[int]:
    """Boundaries of the attention segments: one a temporal patch of every medium, each with `extra` tokens."""
    per_frame = np.repeat(grids[:, 1] * grids[:, 2] + extra, grids[:, 0])
    return [0, *np.cumsum(per_frame).tolist()]


def merge_order(grids: Int64[np.ndarray, "N 3"], merge: int) -> tuple[Int64[np.ndarray, "P"], Int64[np.ndarray, "P"]]:
    """Row and column of every patch, in the published order: the patches of a merged token are neighbours."""
    rows, cols = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for frames, height, width in grids.tolist():
        ids = np.arange(height * width).reshape(height // merge, merge, width // merge, merge)
        ids = np.tile(ids.transpose(0, 2, 1, 3).reshape(-1), frames)
        rows.append(ids // width)
        cols.append(ids % width)
    return np.concatenate(rows), np.concatenate(cols)
