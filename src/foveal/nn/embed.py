"""Tables of two-dimensional positions: resized to other grids, and made from sines and cosines."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.shapes import Float


def resized_positions(table: Float[Tensor, "S D"], side: int, height: int, width: int) -> Float[Tensor, "P D"]:
    """A table of side x side positions at another size: bicubic, computed in float32 (ViT paper, section 3.2)."""
    if (height, width) == (side, side):
        return table
    grid = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(height * width, -1).to(table.dtype)


def sincos_table(side: int, width: int) -> Float[Tensor, "S D"]:
    """Fixed positions of a square grid, row by row (Vaswani et al. 2017, section 3.5, in two dimensions).

    The first half of a row's features is made of the column, the second of the row; a half holds all its
    sines, then all its cosines, at width / 4 frequencies 10000 ** (-4 i / width). Computed in float32, as published.
    """
    turns = np.float32(1) / np.float32(10000) ** (np.arange(width // 4, dtype=np.float32) / np.float32(width / 4))
    rows, columns = np.divmod(np.arange(side * side, dtype=np.float32), np.float32(side))
    halves = [np.concatenate((np.sin(a), np.cos(a)), axis=1) for a in (columns[:, None] * turns, rows[:, None] * turns)]
    return torch.from_numpy(np.concatenate(halves, axis=1))
