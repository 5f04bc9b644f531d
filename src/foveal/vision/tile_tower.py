"""SigLIP's tower as DeepSeek-VL2 carries it: with a pooling head that is never computed."""

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from foveal.nn.linear import Linear
from foveal.nn.mlp import MLP
from foveal.nn.norm import LayerNorm
from foveal.vision.config import PlainConfig
from foveal.vision.plain import PlainTower


class IdlePool(nn.Module):
    """The weights of SigLIP's attention pooling in timm's layout. Released files hold them, so saved ones do too.

    There is no forward pass: DeepSeek-VL2 takes the features of all patches. Its gradients stay None.
    """

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        d = config.width
        self.latent = nn.Parameter(torch.zeros(d))
        self.q = Linear(d, d)
        self.kv = Linear(d, 2 * d)
        self.out = Linear(d, d)
        self.norm = LayerNorm(d, config.eps)
        self.mlp = MLP(d, config.mlp_width, partial(F.gelu, approximate="tanh"))
        nn.init.normal_(self.latent, std=d**-0.5)


class TileTower(PlainTower):
    """A plain tower, with the idle pooling head beside it."""

    plain_layers: ClassVar[tuple[str, ...]] = ("pool",)  # never used

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.pool = IdlePool(config)
