"""Patch merger: neighbouring patches become one token of the language model (Qwen2-VL, section 2)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.linear import Linear
from foveal.nn.norm import LayerNorm


class Merger(nn.Module):
    """Normalises each patch, joins merge x merge neighbours, and maps them with a two-layer MLP.

    Args:
        norm: makes the norm, from a width and an eps.
        join_first: normalise what is joined, not each patch (Qwen3-VL's mergers of inner features).
    """

    def __init__(
        self,
        vision_width: int,
        width: int,
        merge: int,
        *,
        eps: float = 1e-6,
        norm: Callable[[int, float], nn.Module] = LayerNorm,
        join_first: bool = False,
    ) -> None:
        super().__init__()
        self.merge, self.join_first = merge, join_first
        joined = vision_width * merge**2
        self.norm = norm(joined if join_first else vision_width, eps)
        self.up = Linear(joined, joined)
        self.down = Linear(joined, width)

    def forward(self, x: Float[Tensor, "P C"]) -> Float[Tensor, "M D"]:
        """Patches in merge-group order; M = P / merge ** 2."""
        joined = self.up.in_features
        x = self.norm(x.view(-1, joined)) if self.join_first else self.norm(x).view(-1, joined)
        return self.down(F.gelu(self.up(x)))
