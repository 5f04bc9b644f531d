"""SAM's image encoder (Kirillov et al. 2023, after ViTDet, Li et al. 2022), as DeepSeek-VL sees large pictures.

Most blocks attend within windows, four over the whole picture. Scores get two learned terms, one for the distance in
rows and one for that in columns (decomposed relative positions, Li et al. 2021, MViTv2, eq. 4). Behind it
DeepSeek-VL (section 3.1) brings the result to as many tokens as the other tower gives.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear
from foveal.nn.mlp import MLP
from foveal.nn.norm import LayerNorm
from foveal.nn.rope import Rotation
from foveal.vision.hybrid_config import MASK_TOKENS, SamConfig
from foveal.vision.plain import ACTIVATION, FlatPatchEmbed
from foveal.vision.vit import VisionBlock


class SamAttention(nn.Module):
    """Self-attention within windows of `window` x `window` patches, or over the picture where `window` is None.

    `rows` and `columns` [2 S - 1, K] hold a vector for each distance within a window of side S, from far left of (or
    above) a query to far right. They meet the unscaled query, and the result is added to the scaled scores.
    """

    def __init__(self, width: int, heads: int, side: int, window: int | None) -> None:
        super().__init__()
        self.heads, self.side, self.window = heads, side, window
        self.span = window or side
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.rows = nn.Parameter(torch.zeros(2 * self.span - 1, width // heads))
        self.columns = nn.Parameter(torch.zeros(2 * self.span - 1, width // heads))

    def forward(
        self, x: Float[Tensor, "P D"], rotation: Rotation | None, starts: Sequence[int]
    ) -> Float[Tensor, "P D"]:
        """Patches of one picture, row by row; nothing is rotated and there is one segment."""
        x = x.view(self.side, self.side, -1)
        if self.window is None:
            return self.out(self._attend(x.view(1, self.side**2, -1))).view(self.side**2, -1)
        # Windows at the far edges are filled up with zeros, which are seen: they come after the norm and have the
        # bias of the projection.
        many = -(-self.side // self.window)
        more = many * self.window - self.side
        x = F.pad(x, (0, 0, 0, more, 0, more))
        x = x.view(many, self.window, many, self.window, -1).transpose(1, 2)
        x = self.out(self._attend(x.reshape(many**2, self.window**2, -1)))
        x = x.view(many, many, self.window, self.window, -1).transpose(1, 2)
        x = x.reshape(many * self.window, many * self.window, -1)
        return x[: self.side, : self.side].reshape(self.side**2, -1)

    def _attend(self, x: Float[Tensor, "W S D"]) -> Float[Tensor, "W S D"]:
        """Attention within each of W windows of span x span patches.

        Position scores are made for some rows of queries at a time, so a picture's square of them is never held.
        """
        windows, span = x.shape[0], self.span
        q, k, v = self.qkv(x).view(windows, span**2, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        at = torch.arange(span, device=x.device)
        distance = at[:, None] - at + span - 1  # [query, key]
        vertical, horizontal = self.rows[distance], self.columns[distance]
        step = max(1, MASK_TOKENS // span) if self.window is None else span
        parts = []
        for first in range(0, span, step):
            rows = min(step, span - first)
            some = q[:, :, first * span : (first + rows) * span]
            grid = some.reshape(windows, self.heads, rows, span, -1)
            up = torch.einsum("whrck,rsk->whrcs", grid, vertical[first : first + rows])
            across = torch.einsum("whrck,csk->whrcs", grid, horizontal)
            scores = up[..., :, None] + across[..., None, :]
            scores = scores.reshape(windows, self.heads, rows * span, span**2)
            parts.append(F.scaled_dot_product_attention(some, k, v, attn_mask=scores))
            del up, across, scores
        return torch.cat(parts, dim=2).transpose(1, 2).reshape(windows, span**2, -1)


class Neck(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution without bias, each followed by a norm over channels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, channels, kernel_size=1, bias=False)
        self.norm1 = LayerNorm(channels, 1e-6)
        self.second = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = LayerNorm(channels, 1e-6)

    def forward(self, x: Float[Tensor, "N D Y X"]) -> Float[Tensor, "N E Y X"]:
        x = self.norm1(self.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm2(self.second(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SamTower(nn.Module):
    """Patches [P, C] of whole pictures -> [N * out_side ** 2, D] features, row by row.

    Two necks see the last block and, for detail, the first global block; the same two convolutions shrink both.
    The second is weighted with a learned number, `alpha`.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patch = FlatPatchEmbed(c)
        self.positions = nn.Parameter(torch.zeros(c.side, c.side, c.width))
        self.blocks = nn.ModuleList(
            VisionBlock(
                lambda: LayerNorm(c.width, c.eps),
                SamAttention(c.width, c.heads, c.side, None if i in c.full else c.window),
                MLP(c.width, c.mlp_width, ACTIVATION[c.activation]),
            )
            for i in range(c.depth)
        )
        self.neck = Neck(c.width, c.neck)
        self.early_neck = Neck(c.width, c.neck)
        self.down1 = nn.Conv2d(c.neck, c.down[0], kernel_size=3, stride=2, padding=1, bias=False)
        self.down2 = nn.Conv2d(c.down[0], c.down[1], kernel_size=3, stride=2, padding=1, bias=False)
        self.alpha = nn.Parameter(torch.zeros(1))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, patches: Float[Tensor, "P C"], keep: Keep | None = None) -> Float[Tensor, "M D"]:
        """Pictures are computed one after the other: what is at work does not grow with their number."""
        pictures, kept = [], []
        for picture in torch.split(patches, self.config.side**2):
            features, blocks = self._see(picture, keep is not None and bool(keep.wanted))
            pictures.append(features)
            kept.append(blocks)
        if keep and kept:
            for index, parts in enumerate(zip(*kept, strict=True)):
                keep.offer(f"vision.high.blocks.{index}", torch.cat(parts))
        return torch.cat(pictures)

    def _see(self, patches: Float[Tensor, "P C"], keep: bool) -> tuple[Float[Tensor, "M D"], list[Tensor]]:
        """Features of one picture, and the results of all blocks if they are to be kept."""
        x = self.patch(patches) + self.positions.flatten(0, 1)
        early, blocks = x, []
        for index, block in enumerate(self.blocks):
            x = block(x, None, ())
            if index == self.config.full[0]:
                early = x
            if keep:
                blocks.append(x)
        result = self._shrunk(self.neck, x) + self.alpha * self._shrunk(self.early_neck, early)
        return result.flatten(2)[0].T, blocks

    def _shrunk(self, neck: Neck, x: Float[Tensor, "P D"]) -> Float[Tensor, "1 E Y X"]:
        x = neck(x.T.view(1, -1, self.config.side, self.config.side))
        size = (self.config.resized, self.config.resized)
        x = F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False).to(x.dtype)
        return self.down2(self.down1(x))
