"""Linear layers whose weight has another form than a matrix of numbers, and can get it back: for inference only."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from foveal.core.errors import ConfigError
from foveal.core.shapes import Float
from foveal.nn.linear import Linear


class FormedLinear(nn.Module):
    """What such layers share. The bias stays a parameter; the weight is no parameter any more."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias

    @abstractmethod
    def values(self) -> Float[Tensor, "O I"]:
        """The weight, every bit of it."""

    def unpacked(self) -> nn.Linear:
        """The layer that it was made of, with exactly its values."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = nn.Parameter(self.values(), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        raise ConfigError("a packed layer has no tensor of its own; undo the preparation of the network before saving.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        raise ConfigError("a packed layer keeps its type and device; undo the preparation of the network first.")

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
