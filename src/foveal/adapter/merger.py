"""Patch merger: four neighbouring patches become one token of the language model (Qwen2-VL, section 2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.norm import LayerNorm


class Merger(nn.Module):
    """Normalises each patch, joins merge x merge neighbours, and maps them with a two-layer MLP."""

    def __init__(self, vision_width: int, width: int, merge: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.merge = merge
        joined = vision_width * merge**2
        self.norm = LayerNorm(vision_width, eps)
        self.up = nn.Linear(joined, joined)
        self.down = nn.Linear(joined, width)

    def forward(self, x: Float[Tensor, "P C"]) -> Float[Tensor, "M D"]:
        """Patches in merge-group order; M = P / merge ** 2."""
        joined = self.norm(x).view(-1, self.up.in_features)
        return self.down(F.gelu(self.up(joined)))
