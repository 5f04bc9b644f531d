"""CLIP's residual network with attention pooling (CLIP, section 2.4; He et al. 2016, 2019; Zhang 2019).

It differs from ResNet-50 and its kin in three ways: three convolutions and a mean make the stem (ResNet-D),
every reduction of size is a mean over squares before a convolution of stride 1 (antialiasing), and a layer of
attention whose query is the mean of all places takes the place of the last mean.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.errors import InputError
from foveal.core.shapes import Float, Int64
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear
from foveal.vision.resnet_config import EXPANSION, ResNetConfig


class FrozenNorm(nn.Module):
    """Batch normalisation with the statistics that training left (Ioffe and Szegedy 2015, algorithm 2).

    Mean and variance are buffers: they are stored with the model and never learned or updated.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, training=False, eps=self.eps)


def _conv(inside: int, outside: int, size: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, stride=stride, padding=size // 2, bias=False)


class Stem(nn.Module):
    """Three convolutions and a mean over squares of 2: a quarter of the size, `width` channels."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        c, half = config, config.width // 2
        self.conv1, self.norm1 = _conv(c.channels, half, 3, stride=2), FrozenNorm(half, c.eps)
        self.conv2, self.norm2 = _conv(half, half, 3), FrozenNorm(half, c.eps)
        self.conv3, self.norm3 = _conv(half, c.width, 3), FrozenNorm(c.width, c.eps)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D H4 W4"]:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)):
            x = F.relu(norm(conv(x)))
        return F.avg_pool2d(x, 2)


class Shortcut(nn.Module):
    """What goes around a block whose result has another shape."""

    def __init__(self, inside: int, outside: int, stride: int, eps: float) -> None:
        super().__init__()
        self.stride = stride
        self.conv, self.norm = _conv(inside, outside, 1), FrozenNorm(outside, eps)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D H2 W2"]:
        return self.norm(self.conv(F.avg_pool2d(x, self.stride) if self.stride > 1 else x))


class Bottleneck(nn.Module):
    """Narrow, look around, widen (He et al. 2016, figure 5), with the mean where the size shrinks."""

    def __init__(self, inside: int, middle: int, stride: int, eps: float, *, first: bool) -> None:
        super().__init__()
        outside = middle * EXPANSION
        self.stride = stride
        self.conv1, self.norm1 = _conv(inside, middle, 1), FrozenNorm(middle, eps)
        self.conv2, self.norm2 = _conv(middle, middle, 3), FrozenNorm(middle, eps)
        self.conv3, self.norm3 = _conv(middle, outside, 1), FrozenNorm(outside, eps)
        self.shortcut = Shortcut(inside, outside, stride, eps) if first else None

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D H2 W2"]:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.stride > 1:
            y = F.avg_pool2d(y, self.stride)
        y = self.norm3(self.conv3(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class AttentionPool(nn.Module):
    """Multi-head attention with one query, the mean of all places, which is the first of the keys as well."""

    def __init__(self, width: int, side: int, heads: int, embed: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.empty(side**2 + 1, width))
        self.q, self.k, self.v = (Linear(width, width) for _ in range(3))
        self.out = Linear(width, embed)
        nn.init.normal_(self.positions, std=width**-0.5)

    def forward(self, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N E"]:
        x = torch.cat((x.mean(1, keepdim=True), x), dim=1) + self.positions
        q, k, v = (
            linear(y).view(*y.shape[:2], self.heads, -1).transpose(1, 2)
            for linear, y in ((self.q, x[:, :1]), (self.k, x), (self.v, x))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).flatten(1))


class ResNetTower(nn.Module):
    """Whole pictures -> one vector each [N, E]. A picture is one "patch" in the order (channel, row, column)."""

    def __init__(self, config: ResNetConfig, embed: int) -> None:
        super().__init__()
        self.config = c = config
        self.stem = Stem(c)
        inside, stages = c.width, []
        for number, blocks in enumerate(c.stages):
            middle = c.width * 2**number
            strides = [1 if number == 0 else 2] + [1] * (blocks - 1)
            stage = []
            for index, stride in enumerate(strides):
                stage.append(Bottleneck(inside, middle, stride, c.eps, first=index == 0))
                inside = middle * EXPANSION
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.pool = AttentionPool(c.features, c.side, c.heads, embed)

    def forward(
        self, patches: Float[Tensor, "N P"], grids: Int64[np.ndarray, "N 3"], keep: Keep | None = None
    ) -> Float[Tensor, "N E"]:
        """Vectors, not normalised. Offers "vision.stem", "vision.stages.N" [N, C, H, W] to `keep`.

        Raises `InputError` for pictures of another size than the position table's.
        """
        c = self.config
        if patches.shape[1] != c.patch_values:
            raise InputError(
                f"pictures of {patches.shape[1]} values; this tower sees squares of {c.side_px} px, "
                f"{c.patch_values} values. Process them with the checkpoint's own settings."
            )
        pixels = patches.to(self.stem.conv1.weight.dtype)
        x = self.stem(pixels.view(-1, c.channels, c.side_px, c.side_px))
        if keep:
            keep.offer("vision.stem", x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if keep:
                keep.offer(f"vision.stages.{index}", x)
        return self.pool(x.flatten(2).transpose(1, 2))
