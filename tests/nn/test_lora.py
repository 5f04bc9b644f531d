"""Low-rank updates of layers: what they compute, in every way that a layer is used."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.core.errors import ConfigError, WeightsError
from foveal.nn.linear import Linear
from foveal.nn.lora import LoraLinear, LoraPart, adapted, attach, merge, strip, unmerge


def part(rows: int, inputs: int, rank: int = 3, seed: int = 0, **settings) -> LoraPart:
    torch.manual_seed(seed)
    return LoraPart(torch.randn(rank, inputs), torch.randn(rows, rank), **{"alpha": 6.0, **settings})


def network() -> nn.ModuleDict:
    torch.manual_seed(9)
    return nn.ModuleDict({"one": Linear(5, 6), "words": nn.Embedding(7, 4), "norm": nn.LayerNorm(4)})


def test_the_update_is_scale_b_a():
    net, own, x = network(), part(6, 5), torch.randn(2, 3, 5)
    wanted = net["one"](x) + 2.0 * x @ own.a.T @ own.b.T
    attach(net, {"one": [own]})
    assert torch.allclose(net["one"](x), wanted, atol=1e-6)
    assert torch.allclose(F.linear(x, net["one"].weight, net["one"].bias), wanted, atol=1e-5)


def test_rank_stabilised_scale():
    assert part(6, 5, rank=4).scale == 1.5
    assert part(6, 5, rank=4, rslora=True).scale == 3.0


def test_rows_are_updated_apart():
    net, x = network(), torch.randn(3, 5)
    first, last = part(2, 5), part(2, 5, seed=1, start=4)
    plain = net["one"](x)
    attach(net, {"one": [first, last]})
    out = net["one"](x)
    assert torch.equal(out[:, 2:4], plain[:, 2:4])
    assert torch.allclose(out[:, :2], plain[:, :2] + 2.0 * x @ first.a.T @ first.b.T, atol=1e-6)
    assert torch.allclose(out[:, 4:], plain[:, 4:] + 2.0 * x @ last.a.T @ last.b.T, atol=1e-6)


def test_embedding():
    net, ids = network(), torch.tensor([0, 6, 3, 3])
    own = part(4, 7)
    wanted = net["words"](ids) + 2.0 * (own.b @ own.a).T[ids]
    attach(net, {"words": [own]})
    assert torch.allclose(net["words"](ids), wanted, atol=1e-6)
    merge(net)
    assert torch.allclose(net["words"](ids), wanted, atol=1e-5)


def test_merge_unmerge_strip():
    net, x = network(), torch.randn(3, 5)
    before = net["one"].weight.detach().clone()
    attach(net, {"one": [part(2, 5, start=1)]})
    names = set(dict(net.named_parameters()))
    assert {"one.weight", "one.bias", "one.lora.0.a", "one.lora.0.b"} <= names
    live = net["one"](x)
    merge(net)
    merge(net)  # a second time changes nothing
    assert torch.allclose(net["one"](x), live, atol=1e-6)
    assert torch.equal(net["one"].weight, net["one"]._parameters["weight"])
    unmerge(net)
    # Seen: 2.4e-7, the rounding of one addition and one subtraction.
    assert (net["one"]._parameters["weight"] - before).abs().max() < 1e-6
    assert torch.allclose(net["one"](x), live, atol=1e-6)
    merge(net)
    strip(net)
    assert type(net["one"]) is Linear
    assert not adapted(net)
    assert torch.allclose(net["one"](x), live, atol=1e-6)
    assert set(dict(net.named_parameters())) == set(dict(network().named_parameters()))


def test_gradients_reach_the_update_in_both_ways_of_use():
    net, x = network(), torch.randn(3, 5)
    net.requires_grad_(False)
    attach(net, {"one": [part(6, 5)]})
    grads = []
    for out in (net["one"](x), F.linear(x, net["one"].weight, net["one"].bias)):
        net.zero_grad()
        out.square().sum().backward()
        grads.append((net["one"].lora[0].a.grad.clone(), net["one"].lora[0].b.grad.clone()))
    assert net["one"]._parameters["weight"].grad is None
    assert all(torch.allclose(g, h, rtol=1e-4, atol=1e-4) for g, h in zip(*grads, strict=True))
    assert grads[0][0].abs().sum() > 0


def test_dropout_is_for_training_only():
    net, x = network(), torch.randn(8, 5)
    attach(net, {"one": [part(6, 5, dropout=0.5)]})
    net.eval()
    assert torch.equal(net["one"](x), net["one"](x))
    net.train()
    assert not torch.equal(net["one"](x), net["one"](x))
    with pytest.raises(ConfigError, match="dropout is 1"):
        part(6, 5, dropout=1.0)


def test_a_new_part_is_in_the_mode_of_its_layer():
    net = network().eval()
    attach(net, {"one": [part(6, 5, dropout=0.5)]})
    assert not net["one"].lora[0].training


def test_state_goes_and_comes():
    net, other = network(), network()
    for seed, one in enumerate((net, other)):
        attach(one, {"one": [part(6, 5, seed=seed)]})
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(net["one"](x), other["one"](x))
    other.to(torch.float64)
    assert other["one"](x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "parts", "kind", "match"),
    [
        ("two", [part(6, 5)], ConfigError, "two is no layer of the network"),
        ("norm", [part(6, 5)], ConfigError, "norm is a LayerNorm, which takes no updates"),
        ("one", [part(6, 4)], WeightsError, r"A \[3, 4\]"),
        ("one", [part(4, 5, start=3)], WeightsError, "rows 3 to 7"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(name, parts, kind, match):
    net = network()
    with pytest.raises(kind, match=match):
        attach(net, {"words": [part(4, 7)], name: parts})
    assert not adapted(net)


def test_a_layer_is_adapted_once():
    net = network()
    attach(net, {"one": [part(6, 5)]})
    assert isinstance(net["one"], LoraLinear)
    with pytest.raises(ConfigError, match="one carries updates already"):
        attach(net, {"one": [part(6, 5)]})
