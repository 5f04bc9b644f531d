"""A small network with the pieces that matter to reading and writing: layers, a buffer, a head that may be tied."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from foveal.weights.names import NameMap

MAP = """
read model.inner. as inner.
tied lm_head.weight to embed_tokens.weight
embed_tokens.weight               -> embed.weight
lm_head.weight                    -> head.weight
inner.layers.{i}.fc.{weight,bias} -> layers.{i}.{weight,bias}
inner.steps                       -> steps
"""


class Net(nn.Module):
    """Embedding, two layers, a whole-number buffer, and a head unless `tied`."""

    steps: torch.Tensor

    def __init__(self, *, tied: bool = False, width: int = 6, vocab: int = 10, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = None if tied else nn.Linear(width, vocab, bias=False)
        self.register_buffer("steps", torch.tensor([3, 1, 4]))
        self.register_buffer("computed", torch.zeros(2), persistent=False)


@pytest.fixture
def names() -> NameMap:
    return NameMap.parse(MAP, where="net.map")


@pytest.fixture
def make_net() -> Callable[..., Net]:
    """Builds a network with its own random values, or an empty one with `meta=True`."""

    def make(*, meta: bool = False, seed: int = 0, **sizes: int) -> Net:
        if meta:
            with torch.device("meta"):
                return Net(**sizes)
        torch.manual_seed(seed)
        return Net(**sizes)

    return make
