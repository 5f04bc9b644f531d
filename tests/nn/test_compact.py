"""Compact linear layers: the layers they were made of, bit for bit."""

import copy

import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.nn import compact
from foveal.nn.compact import CompactLinear, compacts
from foveal.nn.linear import Linear
from foveal.nn.native import dense

pytestmark = pytest.mark.skipif(dense.way() != dense.TILES, reason="compact weights need tiles (AMX)")


@pytest.fixture(params=[True, False], ids=["bias", "plain"])
def layer(request, monkeypatch):
    monkeypatch.setattr(compact, "SMALLEST", 1000)
    torch.manual_seed(0)
    return Linear(96, 200, bias=request.param).bfloat16().requires_grad_(False)


def test_results_are_those_of_the_layer(layer):
    assert compacts(layer)
    small = CompactLinear.of(layer)
    for shape in ((96,), (1, 96), (5, 96), (2, 40, 96), (0, 96)):
        x = torch.randn(shape).bfloat16()
        assert torch.equal(small(x), layer(x)) and small(x).shape == layer(x).shape


def test_gradients_pass_to_the_input(layer):
    small = CompactLinear.of(layer)
    x, again = (torch.ones(3, 96).bfloat16().requires_grad_() for _ in range(2))
    small(x).float().square().sum().backward()
    layer(again).float().square().sum().backward()
    assert torch.equal(x.grad, again.grad)


def test_the_layer_comes_back_exactly(layer):
    small = copy.deepcopy(CompactLinear.of(layer)).eval()
    back = small.unpacked()
    assert torch.equal(back.weight, layer.weight) and not back.training
    assert back.bias is small.bias and (layer.bias is None or torch.equal(back.bias, layer.bias))


def test_what_does_not_gain_is_left_alone(layer):
    assert not compacts(copy.deepcopy(layer).float())
    assert not compacts(Linear(10, 10).bfloat16())
    assert not compacts(torch.nn.Linear(96, 200).bfloat16())
    assert not compacts(copy.deepcopy(layer).to("meta"))


def test_it_has_no_state_and_does_not_move(layer):
    small = CompactLinear.of(layer)
    with pytest.raises(ConfigError, match="undo"):
        small.state_dict()
    with pytest.raises(ConfigError, match="undo"):
        small.float()
