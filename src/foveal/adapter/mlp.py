"""DeepSeek-VL's adapters (Lu et al. 2024, section 3.1): from the width of the towers to that of the decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.nn.linear import Linear


class Projector(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.up = Linear(vision_width, width)
        self.down = Linear(width, width)

    def forward(self, x: Float[Tensor, "M C"]) -> Float[Tensor, "M D"]:
        return self.down(F.gelu(self.up(x)))


class SplitProjector(nn.Module):
    """Features of two towers side by side: each goes through a linear layer of its own to half of the width, then both
    together through GELU and a linear layer."""

    def __init__(self, high_width: int, low_width: int, width: int) -> None:
        super().__init__()
        self.high_width = high_width
        self.high = Linear(high_width, width // 2)
        self.low = Linear(low_width, width // 2)
        self.out = Linear(width, width)

    def forward(self, x: Float[Tensor, "M C"]) -> Float[Tensor, "M D"]:
        high, low = x[:, : self.high_width], x[:, self.high_width :]
        return self.out(F.gelu(torch.cat((self.high(high), self.low(low)), dim=-1)))
