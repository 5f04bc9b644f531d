"""One vector for each picture from the class token of a plain tower."""

import numpy as np
import torch
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear
from foveal.vision.plain import PlainTower
from foveal.vision.vit import frame_starts


class ClassTokenTower(nn.Module):
    """The class token of a plain tower, mapped to the width that pictures and texts share (CLIP, section 2.4)."""

    def __init__(self, tower: PlainTower, embed: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = Linear(tower.config.width, embed, bias=False)

    def forward(
        self, patches: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "M E"]:
        """Vectors, not normalised, of the M pictures that `grids` counts."""
        features = self.tower(patches, grids, keep)
        first = torch.tensor(frame_starts(grids, extra=1)[:-1], dtype=torch.int64, device=features.device)
        return self.head(features[first])
