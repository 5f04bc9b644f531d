"""The vision transformer of Qwen3-VL: learned positions at any size, rotary ones, and features of inner blocks."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.nn.keep import Keep
from foveal.nn.mlp import MLP
from foveal.nn.norm import LayerNorm
from foveal.nn.rope import grid_rotation
from foveal.vision.config import StackConfig
from foveal.vision.vit import PatchEmbed, VisionAttention, VisionBlock, frame_starts, merge_order

gelu_tanh = partial(F.gelu, approximate="tanh")


class StackTower(nn.Module):
    """Qwen3-VL's tower: every temporal patch of every picture attends within itself."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patch = PatchEmbed(c, bias=True)
        self.positions = nn.Parameter(torch.zeros(c.side**2, c.width))
        self.blocks = nn.ModuleList(
            VisionBlock(
                lambda: LayerNorm(c.width, c.eps),
                VisionAttention(c.width, c.heads),
                MLP(c.width, c.mlp_width, gelu_tanh),
            )
            for _ in range(c.depth)
        )
        nn.init.normal_(self.positions, std=0.02)

    def forward(
        self, patches: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> tuple[Float[Tensor, "P D"], list[Float[Tensor, "P D"]]]:
        """Features, and those of the inner blocks, in the order of the patches.

        Takes patches of all media in merge-group order, and each medium's grid (time, height, width in patches).
        """
        c, device = self.config, patches.device
        rows, cols = merge_order(grids, c.merge)
        rotation = grid_rotation(
            torch.from_numpy(rows).to(device), torch.from_numpy(cols).to(device), head_dim=c.head_dim, theta=c.theta
        )
        starts = frame_starts(grids)
        x = self.patch(patches)
        x = x + self._placed(grids, rows, cols).to(x.dtype)
        inner: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, starts)
            if index in c.inner:
                inner[index] = x
            if keep:
                keep.offer(f"vision.blocks.{index}", x)
        return x, [inner[index] for index in c.inner]

    def _placed(
        self, grids: Int64[np.ndarray, "N 3"], rows: Int64[np.ndarray, "P"], cols: Int64[np.ndarray, "P"]
    ) -> Float[Tensor, "P D"]:
        """The learned position of every patch in float32: the table stretched over each picture, corner on corner."""
        side, start = self.config.side, 0
        table = self.positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        parts = []
        for frames, height, width in grids.tolist():
            stretched = F.interpolate(table, size=(height, width), mode="bilinear", align_corners=True)
            stop = start + height * width
            places = torch.from_numpy(rows[start:stop] * width + cols[start:stop]).to(table.device)
            parts.append(stretched.flatten(2)[0].T[places].repeat(frames, 1))
            start += frames * height * width
        return torch.cat(parts)
