"""Tiles to tokens (DeepSeek-VL2, section 2.1): 2 x 2 patches become one, and learned tokens end rows and views.

one picture of 2 x 1 tiles, each of 2 x 2 tokens (after joining); n: newline, s: separator

global view     a b n        local tiles as one grid    e f | g h n
                c d n   s                               i j | k l n

as a sequence:  a b n c d n s e f g h n i j k l n       (global view first; "tail" puts it last)
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear


class TileAdapter(nn.Module):
    """Joins join x join neighbouring patches and maps them with an MLP; arranges the views of each picture.

    Args:
        vision_width: features of a patch.
        width: features of a token.
        mlp_width: hidden features of the MLP.
        depth: linear layers of the MLP, at least 2, with GELU between them.
        join: patches along a side of a token.
        global_first: the global view stands before the tiles.
    """

    def __init__(
        self, vision_width: int, width: int, mlp_width: int, *, depth: int, join: int, global_first: bool
    ) -> None:
        super().__init__()
        self.join, self.global_first = join, global_first
        widths = [vision_width * join**2, *[mlp_width] * (depth - 1), width]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(widths))
        self.newline = nn.Parameter(torch.zeros(width))
        self.separator = nn.Parameter(torch.zeros(width))
        for token in (self.newline, self.separator):
            nn.init.normal_(token, std=width**-0.5)

    def project(self, x: Float[Tensor, "N P C"], side: int) -> Float[Tensor, "N M D"]:
        """Views of side x side patches -> tokens, row by row. An odd side is filled up with zeros right and below.

        The values of a token's patches lie channel by channel: (channel, row, column).
        """
        views, _, width = x.shape
        grid = x.view(views, side, side, width)
        short = -side % self.join
        if short:
            grid = F.pad(grid, (0, 0, 0, short, 0, short))
        cells, j = (side + short) // self.join, self.join
        joined = grid.view(views, cells, j, cells, j, width).permute(0, 1, 3, 5, 2, 4).reshape(views, cells**2, -1)
        for index, layer in enumerate(self.layers):
            joined = layer(F.gelu(joined) if index else joined)
        return joined

    def arrange(self, views: Float[Tensor, "N M D"], tiles: tuple[int, int]) -> Float[Tensor, "L D"]:
        """The tokens of one picture: its global view and its tiles (columns, rows of them) -> one sequence."""
        width = views.shape[-1]
        side = math.isqrt(views.shape[1])
        across, down = tiles
        whole = self._rows(views[0].view(side, side, width))
        grid = views[1:].view(down, across, side, side, width).transpose(1, 2)
        parts = self._rows(grid.reshape(down * side, across * side, width))
        separator = self.separator[None].to(views.dtype)
        return torch.cat((whole, separator, parts) if self.global_first else (parts, separator, whole))

    def _rows(self, grid: Float[Tensor, "H W D"]) -> Float[Tensor, "L D"]:
        """A grid row by row, the newline token after each."""
        newline = self.newline.to(grid.dtype).expand(len(grid), 1, -1)
        return torch.cat((grid, newline), dim=1).flatten(0, 1)

    def forward(
        self,
        x: Float[Tensor, "P C"],
        grids: Int64[np.ndarray, "N 3"],
        tiles: Int64[np.ndarray, "N 2"],
        keep: Keep | None = None,
    ) -> Float[Tensor, "M D"]:
        """Patches of all views of all pictures -> visual tokens.

        `grids` are (views, rows, columns of patches), `tiles` (columns, rows of tiles); all views have one size.
        Offers "adapter.views", the views before they are arranged [V, tokens of a view, D].
        """
        if not len(grids):
            return x.new_zeros(0, len(self.newline))
        side = int(grids[0, 1])
        views = self.project(x.view(-1, side * side, x.shape[-1]), side)
        if keep:
            keep.offer("adapter.views", views)
        parts, start = [], 0
        for count, (across, down) in zip(grids[:, 0].tolist(), tiles.tolist(), strict=True):
            parts.append(self.arrange(views[start : start + count], (across, down)))
            start += count
        return torch.cat(parts)
