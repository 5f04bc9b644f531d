"""Qwen2.5-VL's network: its tower works in the order of its windows."""

import numpy as np
import torch
from torch import Tensor

from foveal.adapter.merger import Merger
from foveal.core.packed import Packed
from foveal.core.shapes import Float
from foveal.families.vlm import VLM
from foveal.language.decoder import Decoder
from foveal.nn.keep import Keep
from foveal.vision.windows import WindowTower


class WindowedVLM(VLM):
    """The result "vision" is in the order of windows, as the reference gives it; visual tokens are in reading order."""

    vision: WindowTower

    def __init__(self, vision: WindowTower, adapter: Merger, language: Decoder) -> None:
        super().__init__(vision, adapter, language)

    def see(self, batch: Packed, keep: Keep | None = None) -> Float[Tensor, "M D"]:
        """Visual tokens of all media in reading order."""
        patches = torch.from_numpy(batch.patches).to(self.device)
        features = self.vision(patches, batch.grids, keep)
        order, _ = self.vision.order(batch.grids)
        tokens = self.adapter(features)[torch.from_numpy(np.argsort(order)).to(self.device)]
        if keep:
            keep.offer("vision", features)
            keep.offer("adapter", tokens)
        return tokens
