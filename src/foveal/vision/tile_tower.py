"""SigLIP's tower as DeepSeek-VL2 carries it: views of one size, and a pooling head that is never computed."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float, Int64
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
        self.latent = nn.Parameter(torch.zeros(1, 1, d))
        self.q = nn.Linear(d, d)
        self.kv = nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)
        self.norm = LayerNorm(d, config.eps)
        self.mlp = MLP(d, config.mlp_width, partial(F.gelu, approximate="tanh"))
        nn.init.normal_(self.latent, std=d**-0.5)


class TileTower(PlainTower):
    """A plain tower for views of one size; its table of positions keeps the published leading axis [1, S, D]."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.positions = nn.Parameter(self.positions.detach()[None])
        self.pool = IdlePool(config)

    def _placed(self, x: Float[Tensor, "P D"], grids: Int64[np.ndarray, "N 3"]) -> Float[Tensor, "P D"]:
        return (x.view(-1, *self.positions.shape[1:]) + self.positions).flatten(0, 1)


def idle_pool_parameters(config: PlainConfig) -> int:
    """Numbers that an `IdlePool` holds."""
    d, f = config.width, config.mlp_width
    return d + (d + 1) * 4 * d + 2 * d + (d + 1) * f + (f + 1) * d
