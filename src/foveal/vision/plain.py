"""The vision transformer with learned positions (Dosovitskiy et al. 2021), as ViT, CLIP and SigLIP use it.

Pictures lie end to end as everywhere: patches row by row, picture after picture, and each attends within itself.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.nn.embed import resized_positions
from foveal.nn.keep import Keep
from foveal.nn.linear import linear
from foveal.nn.mlp import MLP, Activation, quick_gelu
from foveal.nn.norm import LayerNorm
from foveal.vision.config import PlainConfig
from foveal.vision.vit import VisionAttention, VisionBlock, frame_starts

ACTIVATION: Mapping[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class FlatPatchEmbed(nn.Module):
    """One linear map of a patch's pixels; the weight keeps the published convolution's shape [D, C, p, p]."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        c = config
        self.weight = nn.Parameter(torch.empty(c.width, c.channels, c.patch, c.patch))
        self.bias = nn.Parameter(torch.zeros(c.width)) if c.patch_bias else None
        nn.init.normal_(self.weight, std=c.patch_values**-0.5)

    def forward(self, patches: Float[Tensor, "P C"]) -> Float[Tensor, "P D"]:
        return linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class PlainTower(nn.Module):
    """Patches [P, C] -> features [P, D]; with a class token, [P + N, D] with it before each picture's patches.

    `attention` makes a block's attention from width and heads; it is called as `VisionAttention` is.
    """

    def __init__(self, config: PlainConfig, *, attention: Callable[[int, int], nn.Module] = VisionAttention) -> None:
        super().__init__()
        self.config = c = config
        self.patch = FlatPatchEmbed(c)
        self.positions = nn.Parameter(torch.zeros(c.side**2 + c.class_token, c.width))
        self.class_token = nn.Parameter(torch.zeros(c.width)) if c.class_token else None
        self.norm_before = LayerNorm(c.width, c.eps) if c.norm_before else None
        self.blocks = nn.ModuleList(
            VisionBlock(
                lambda: LayerNorm(c.width, c.eps),
                attention(c.width, c.heads),
                MLP(c.width, c.mlp_width, ACTIVATION[c.activation]),
            )
            for _ in range(c.depth)
        )
        self.norm_after = LayerNorm(c.width, c.eps) if c.norm_after else None
        nn.init.normal_(self.positions, std=0.02)

    def forward(
        self, patches: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "P2 D"]:
        """Patches of all pictures row by row, and each one's grid (number of pictures, height, width in patches)."""
        x = self._placed(self.patch(patches), grids)
        starts = frame_starts(grids, extra=self.config.class_token)
        if self.norm_before is not None:
            x = self.norm_before(x)
        if keep:
            keep.offer("vision.embeddings", x)
        for index, block in enumerate(self.blocks):
            x = block(x, None, starts)
            if keep:
                keep.offer(f"vision.blocks.{index}", x)
        return x if self.norm_after is None else self.norm_after(x)

    def _placed(self, x: Float[Tensor, "P D"], grids: Int64[np.ndarray, "N 3"]) -> Float[Tensor, "P2 D"]:
        """Adds positions, and sets class tokens before their pictures; neighbours of one size at once."""
        shapes = [(size, sum(count for count, _, _ in same)) for size, same in groupby(grids.tolist(), lambda g: g[1:])]
        parts = []
        first = self.positions[:1] + self.class_token if self.class_token is not None else None
        table = self.positions if first is None else self.positions[1:]
        rows = torch.split(x, [count * height * width for (height, width), count in shapes])
        for ((height, width), count), same in zip(shapes, rows, strict=True):
            own = resized_positions(table, self.config.side, height, width)
            block = same.view(count, height * width, -1) + own
            if first is not None:
                block = torch.cat((first.expand(count, 1, -1), block), dim=1)
            parts.append(block.flatten(0, 1))
        return torch.cat(parts) if parts else x
