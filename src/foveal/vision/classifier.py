"""Image classification with a class token (Dosovitskiy et al. 2021, section 3.1)."""

import numpy as np
import torch
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear
from foveal.vision.config import PlainConfig
from foveal.vision.plain import PlainTower


class ImageClassifier(nn.Module):
    """A tower with a class token, and a linear head on that token's feature.

    `labels` is the number of classes; without any there is no head, and the result is the feature. With `pooler`
    the feature goes through a linear map and a tanh, as checkpoints of the base model without a head have it.
    """

    def __init__(self, config: PlainConfig, labels: int, *, pooler: bool = False) -> None:
        super().__init__()
        self.vision = PlainTower(config)
        self.pooler = Linear(config.width, config.width) if pooler else None
        self.head = Linear(config.width, labels) if labels else None

    def forward(
        self, patches: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "N _"]:
        """Patches of all pictures row by row, and each one's grid -> logits [N, labels], or features [N, D].

        Offers `keep` the results of the tower, and "vision" [P + N, D] and "class" [N, D].
        """
        x = self.vision(patches, grids, keep)
        places = np.cumsum([0, *(grids[:, 1] * grids[:, 2] + 1)[:-1]]) if len(grids) else np.zeros(0, np.int64)
        feature = x[torch.from_numpy(places.astype(np.int64)).to(x.device)]
        if keep:
            keep.offer("vision", x)
            keep.offer("class", feature)
        if self.pooler is not None:
            feature = torch.tanh(self.pooler(feature))
        return feature if self.head is None else self.head(feature)
