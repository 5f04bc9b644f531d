"""Balance of experts beside plain counts, with and without activation checkpointing."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from foveal.core.errors import ConfigError, InputError
from foveal.nn.moe import MoE, Routed, watched
from foveal.nn.routing import Routing
from foveal.train.losses.balance import Balance, balance_losses

EXPERTS, CHOSEN, GROUPS, KEPT = 6, 2, 3, 2
STARTS = [0, 4, 4, 9]
ALL = Balance(experts=0.003, devices=0.05, communication=0.02, groups=GROUPS, kept_groups=KEPT)


def routed(seed: int = 0, sigmoid: bool = False) -> Routed:
    logits = torch.randn(9, EXPERTS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
    chosen = scores.topk(CHOSEN).indices
    return Routed(chosen, scores.gather(1, chosen), scores)


def plain(layer: Routed, start: int, stop: int, settings: Balance) -> float:
    """The three sums over the tokens `start` to `stop`, counted one by one."""
    scores = layer.scores.numpy()[start:stop]
    scores = scores / scores.sum(1, keepdims=True)
    chosen = layer.experts.numpy()[start:stop]
    tokens, size = stop - start, EXPERTS // GROUPS
    f = [EXPERTS / (CHOSEN * tokens) * (chosen == i).sum() for i in range(EXPERTS)]
    p = [scores[:, i].mean() for i in range(EXPERTS)]
    total = settings.experts * sum(a * b for a, b in zip(f, p, strict=True))
    for d in range(GROUPS):
        members = range(d * size, (d + 1) * size)
        share = sum(p[j] for j in members)
        sent = sum(any(e in members for e in row) for row in chosen)
        total += settings.devices * sum(f[j] for j in members) / size * share
        total += settings.communication * GROUPS / (KEPT * tokens) * sent * share
    return total


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_three_losses_by_sequence(sigmoid):
    layers = [routed(seed, sigmoid) for seed in (0, 1)]
    found = balance_losses(layers, STARTS, ALL)
    wanted = [sum(plain(layer, a, b, ALL) for layer in layers) for a, b in ((0, 4), (4, 9))]
    assert found.weight == 2, "an empty sequence has no share"
    assert found.sum.item() == pytest.approx(sum(wanted), rel=1e-7)  # worst seen: 1.8e-8; counts are in float32
    assert found.mean.item() == pytest.approx(np.mean(wanted), rel=1e-7)  # worst seen: 1.8e-8; counts are in float32


def test_the_whole_pack_as_one():
    settings = Balance(experts=0.003, devices=0.05, groups=GROUPS, by_sequence=False)
    found = balance_losses([routed()], STARTS, settings)
    assert found.weight == 9
    assert found.mean.item() == pytest.approx(
        plain(routed(), 0, 9, settings), rel=1e-7
    )  # worst seen: 1.8e-8; counts are in float32


def test_one_when_even_and_larger_otherwise():
    scores = torch.full((6, 4), 0.25)
    even = Routed(torch.tensor([[0, 1], [2, 3]] * 3), torch.ones(6, 2), scores)
    for settings in (
        Balance(experts=1.0),
        Balance(devices=1.0, groups=2),
        Balance(communication=1.0, groups=2, kept_groups=1),
    ):
        assert balance_losses([even], [0, 2, 6], settings).mean.item() == pytest.approx(1.0)
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(6, 4)
    one_sided = Routed(torch.tensor([[0, 1]] * 6), torch.ones(6, 2), skewed)
    assert balance_losses([one_sided], [0, 6], Balance(experts=1.0)).mean.item() == pytest.approx(2 * 0.7 + 2 * 0.1)
    found = balance_losses([one_sided], [0, 6], Balance(devices=1.0, groups=2)).mean.item()
    assert found == pytest.approx(2 * 0.8)


class Stack(nn.Module):
    """Two layers of experts, perhaps with activation checkpointing."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        routing = Routing(experts=EXPERTS, chosen=CHOSEN)
        self.layers = nn.ModuleList(MoE(8, 4, routing) for _ in range(2))
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if self.again else layer(x))
        return x


def test_checkpointed_activations_give_the_same_gradients():
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))
    gradients = []
    for again in (False, True):
        network = Stack(again)
        with watched(network) as layers:
            out = network(x)
        assert len(layers) == 2
        uneven = balance_losses(layers, STARTS, Balance(experts=1.0)).mean
        (out.square().mean() + uneven).backward()
        assert len(layers) == 2, "the second look in the backward pass is not counted"
        gradients.append([p.grad.clone() for p in network.parameters()])
        alone = torch.autograd.grad(
            balance_losses(watch(network, x), STARTS, Balance(experts=1.0)).mean, router(network)
        )
        assert alone[0].abs().max() > 1e-3
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def watch(network: Stack, x: torch.Tensor) -> list[Routed]:
    with watched(network) as layers:
        network(x)
    return layers


def router(network: Stack) -> torch.Tensor:
    return network.layers[0].router.weight


def test_evening_out_works():
    """Following the gradient spreads tokens that began on few experts."""
    network = Stack(False)
    with torch.no_grad():
        network.layers[0].router.weight[:2] += 0.6
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    values = []
    for _ in range(30):
        loss = balance_losses(watch(network, x), [0, 64], Balance(experts=1.0)).mean
        values.append(loss.item() / 2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert values[0] > 1.3 > 1.1 > values[-1] > 0.98


def test_no_weights_give_zero_with_a_graph():
    scores = torch.randn(9, EXPERTS).softmax(-1).requires_grad_()
    found = balance_losses([Routed(scores.topk(2).indices, scores, scores)], STARTS, Balance())
    found.sum.backward()
    assert found.sum.item() == 0
    assert scores.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("layers", "starts", "settings", "message"),
    [
        ([], STARTS, Balance(experts=1.0), "no router was watched"),
        ([routed()], [0, 8], Balance(experts=1.0), r"saw \[9\] tokens, the pack has 8"),
        ([routed()], STARTS, Balance(devices=1.0, groups=4), "6 experts do not divide into 4"),
    ],
)
def test_what_does_not_fit_is_refused(layers, starts, settings, message):
    with pytest.raises(InputError, match=message):
        balance_losses(layers, starts, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": -0.1}, "0 or more"),
        ({"groups": 2, "kept_groups": 3}, "3 of 2 groups"),
        ({"devices": 0.05}, "one group"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Balance(**changes)
