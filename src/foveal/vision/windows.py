"""The vision transformer of Qwen2.5-VL: most blocks attend within windows, some over whole frames.

Merged tokens are put in the order of their windows once, before the first block, so that a window is one
segment of the sequence; blocks that see whole frames use the same order, in which a frame is one segment too.
"""

import numpy as np
import torch
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.nn.keep import Keep
from foveal.nn.mlp import GatedMLP
from foveal.nn.norm import RMSNorm
from foveal.nn.rope import grid_rotation
from foveal.vision.config import WindowConfig
from foveal.vision.vit import PatchEmbed, VisionAttention, VisionBlock, frame_starts, merge_order


class WindowTower(nn.Module):
    """Qwen2.5-VL's tower (section 2.1.1): windows, RMSNorm, SwiGLU with biases."""

    def __init__(self, config: WindowConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patch = PatchEmbed(c)
        self.blocks = nn.ModuleList(
            VisionBlock(
                lambda: RMSNorm(c.width, c.eps),
                VisionAttention(c.width, c.heads),
                GatedMLP(c.width, c.mlp_width, bias=True),
            )
            for _ in range(c.depth)
        )

    def order(self, grids: Int64[np.ndarray, "N 3"]) -> tuple[Int64[np.ndarray, "M"], list[int]]:
        """See `window_order`."""
        return window_order(grids, self.config.merge, self.config.window_cells)

    def forward(
        self, patches: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "P D"]:
        """Patches of all media in merge-group order, and each medium's grid (time, height, width in patches).

        The result is in the order of the windows: row-wise groups of merge x merge patches, group `order[i]`
        of the input at place i. Merging keeps a group together, so the order is undone on merged tokens.
        """
        c, device = self.config, patches.device
        order, windows = self.order(grids)
        rows, cols = (torch.from_numpy(_grouped(n, order, c.merge**2)).to(device) for n in merge_order(grids, c.merge))
        rotation = grid_rotation(rows, cols, head_dim=c.head_dim, theta=c.theta)
        groups = torch.from_numpy(order).to(device)
        x = self.patch(patches).view(-1, c.merge**2, c.width)[groups].flatten(0, 1)
        frames = frame_starts(grids)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, frames if index in c.full else windows)
            if keep:
                keep.offer(f"vision.blocks.{index}", x)
        return x


def window_order(grids: Int64[np.ndarray, "N 3"], merge: int, side: int) -> tuple[Int64[np.ndarray, "M"], list[int]]:
    """Merged tokens of all media window by window, and the boundaries of the windows in patches.

    A window has side x side merged tokens, fewer at the right and lower edge; it lies within one temporal
    patch. Windows come row by row, and so do the tokens of a window.
    """
    orders, sizes, start = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for frames, height, width in grids.tolist():
        high, wide = height // merge, width // merge
        across = -(-wide // side)
        window = (np.arange(high)[:, None] // side * across + np.arange(wide) // side).ravel()
        within = np.argsort(window, kind="stable")
        firsts = start + np.arange(frames) * high * wide
        orders.append((firsts[:, None] + within).ravel())
        sizes.append(np.tile(np.bincount(window) * merge**2, frames))
        start += frames * high * wide
    return np.concatenate(orders), [0, *np.cumsum(np.concatenate(sizes)).tolist()]


def _grouped(values: Int64[np.ndarray, "P"], order: Int64[np.ndarray, "M"], size: int) -> Int64[np.ndarray, "P"]:
    return values.reshape(-1, size)[order].ravel()
