"""DeepSeek-VL2's network: the adapter has to know how each picture was tiled."""

import torch
from torch import Tensor

from foveal.core.packed import Packed
from foveal.core.shapes import Float
from foveal.families.vlm import VLM
from foveal.nn.keep import Keep


class TiledVLM(VLM):
    """Beside the names of `VLM.forward`, `keep` knows "adapter.views" [views, tokens, D]: tokens before arranging."""

    def see(self, batch: Packed, keep: Keep | None = None) -> Float[Tensor, "M D"]:
        """Visual tokens of all pictures, newlines and separators among them, in the order of the batch."""
        patches = torch.from_numpy(batch.patches).to(self.device)
        features = self.vision(patches, batch.grids, keep)
        tokens = self.adapter(features, batch.grids, batch.extra["tiles"], keep)
        if keep:
            keep.offer("vision", features)
            keep.offer("adapter", tokens)
        return tokens
