"""The network that families with two towers share: pictures and texts become vectors of one space."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
from foveal.language.text_encoder import TextEncoder
from foveal.nn.keep import Keep

FIRST_SCALE = math.log(1 / 0.07)
"""Where CLIP's logit scale begins (CLIP, section 2.5)."""


class DualEncoder(nn.Module):
    """An image tower and a text tower whose vectors are compared (CLIP, section 2.3; SigLIP, algorithm 1).

    Args:
        vision: patches [P, C] and grids [N, 3] of pictures -> vectors [N, E].
        text: tokens [T] and boundaries of texts -> vectors [B, E].
        bias: similarities have a learned offset (SigLIP).
        scalar_shape: shape in which published files hold the scale and the offset, () or (1,).
        first_scale, first_bias: where the two begin in training.
    """

    def __init__(
        self,
        vision: nn.Module,
        text: TextEncoder,
        *,
        bias: bool = False,
        scalar_shape: tuple[int, ...] = (),
        first_scale: float = FIRST_SCALE,
        first_bias: float = -10.0,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        self.logit_scale = nn.Parameter(torch.full(scalar_shape, first_scale))
        self.logit_bias = nn.Parameter(torch.full(scalar_shape, first_bias)) if bias else None

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        return self.logit_scale.dtype

    def embed_images(
        self, patches: Float[Tensor, "P C"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "N E"]:
        """Vectors of length 1 of N pictures, in float32. Offers the tower's results and "image" to `keep`."""
        features = self.vision(patches, grids, keep)
        if keep:
            keep.offer("image", features)
        return F.normalize(features.float(), dim=-1)

    def embed_text(
        self, tokens: Int64[np.ndarray, "T"], starts: Int64[np.ndarray, "B1"], keep: Keep | None = None
    ) -> Float[Tensor, "B E"]:
        """Vectors of length 1 of B texts that lie end to end, in float32. Offers results and "text" to `keep`."""
        features = self.text(tokens, starts, keep)
        if keep:
            keep.offer("text", features)
        return F.normalize(features.float(), dim=-1)

    def similarity(self, images: Float[Tensor, "N E"], texts: Float[Tensor, "B E"]) -> Float[Tensor, "N B"]:
        """Logits of every picture with every text: exp(scale) <image, text> (+ bias)."""
        logits = self.logit_scale.float().exp() * (images @ texts.T)
        return logits if self.logit_bias is None else logits + self.logit_bias.float()

    def forward(
        self,
        patches: Float[Tensor, "P C"],
        grids: Int64[np.ndarray, "N 3"],
        tokens: Int64[np.ndarray, "T"],
        starts: Int64[np.ndarray, "B1"],
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "B E"]]:
        """Vectors of pictures and of texts, as training needs them."""
        return self.embed_images(patches, grids), self.embed_text(tokens, starts)
