"""DeepSeek-VL's network: as all, but its towers may see each picture at two sizes."""

import torch
from torch import Tensor

from foveal.core.packed import Packed
from foveal.core.shapes import Float
from foveal.families.vlm import VLM
from foveal.nn.keep import Keep
from foveal.processing.padded import LOW


class TwoSizes(VLM):
    """`Packed.patches` are those of the large pictures, `Packed.extra["low"]` those of the small ones."""

    def see(self, batch: Packed, keep: Keep | None = None) -> Float[Tensor, "M D"]:
        """Visual tokens of all media, in the order of the batch."""
        patches = torch.from_numpy(batch.patches).to(self.device)
        low = torch.from_numpy(batch.extra[LOW]).to(self.device) if LOW in batch.extra else None
        features = self.vision(patches, batch.grids, keep, low)
        tokens = self.adapter(features)
        if keep:
            keep.offer("vision", features)
            keep.offer("adapter", tokens)
        return tokens
