"""DeepSeek-VL's towers: SigLIP alone (1.3B), or beside SAM for large pictures (7B; Lu et al. 2024, section 3.1)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from foveal.core.errors import InputError
from foveal.core.shapes import Float, Int64
from foveal.nn.keep import Keep
from foveal.processing.patches import Normalize
from foveal.vision.hybrid_config import TowersConfig
from foveal.vision.plain import PlainTower
from foveal.vision.sam import SamTower


class Unused(nn.Module):
    """Tensors that a release carries and no result depends on; they are kept so that a saved folder is complete."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))


class Towers(nn.Module):
    """Patches of whole pictures -> one row a visual token: SAM's features, then SigLIP's; or SigLIP's alone."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.low = PlainTower(config.low)
        self.high = SamTower(config.high) if config.high is not None else None
        self.unused = Unused(config.shapes)

    def forward(
        self,
        patches: Float[Tensor, "P C"],
        grids: Int64[np.ndarray, "N 3"],
        keep: Keep | None = None,
        low: Float[Tensor, "P2 C2"] | None = None,
    ) -> Float[Tensor, "M D"]:
        """`patches` of the large picture of each grid and `low`, those of the small one; or of one size alone."""
        c = self.config
        if self.high is None:
            return self.low(normalized(patches, c.low_colours), grids, keep)
        if low is None or len(low) != len(grids) * c.low.side**2:
            rows = "no" if low is None else str(len(low))
            raise InputError(
                f"{len(grids)} pictures with {rows} patches of the small size, expected {c.low.side**2} for each; "
                "process them with this model's own processor."
            )
        fine = self.high(normalized(patches, c.high_colours), keep)
        small = grids * 0 + np.array([1, c.low.side, c.low.side])
        coarse = self.low(normalized(low, c.low_colours), small, keep)
        if keep:
            keep.offer("vision.high", fine)
            keep.offer("vision.low", coarse)
        return torch.cat((fine, coarse), dim=-1)


def normalized(patches: Float[Tensor, "P C"], colours: Normalize | None) -> Float[Tensor, "P C"]:
    """Rows in the order (channel, row, column) of pixels from 0 to 1, normalised; as they are without `colours`."""
    if colours is None:
        return patches
    mean, std = (
        torch.tensor(v, dtype=patches.dtype, device=patches.device)[:, None] for v in (colours.mean, colours.std)
    )
    return ((patches.view(len(patches), 3, -1) - mean) / std).flatten(1)
