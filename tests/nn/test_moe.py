"""Experts computed together are experts computed token by token."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.errors import ConfigError
from foveal.nn.moe import Experts, FusedExperts, MoE, Routed, Router, balance_loss, watched
from foveal.nn.routing import Routing


def chosen_by_hand(router: Router, x: torch.Tensor) -> tuple[list[int], list[float]]:
    """The routing rule for one token, in plain Python on float32 scores."""
    r = router.routing
    logits = (router.weight.float() @ x.float()).tolist()
    if r.score == "softmax":
        top = max(logits)
        whole = sum(np.exp(v - top) for v in logits)
        scores = [float(np.exp(v - top) / whole) for v in logits]
    else:
        scores = [float(1 / (1 + np.exp(-v))) for v in logits]
    bias = [0.0] * r.experts if router.bias is None else router.bias.tolist()
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    if r.method != "greedy":
        size = r.experts // r.groups
        groups = [sorted(choice[g * size : (g + 1) * size], reverse=True) for g in range(r.groups)]
        best = [g[0] if r.method == "group_limited_greedy" else g[0] + g[1] for g in groups]
        kept = sorted(range(r.groups), key=lambda g: -best[g])[: r.kept_groups]
        choice = [c if i // size in kept else 0.0 for i, c in enumerate(choice)]
        if r.method == "group_limited_greedy":
            scores = choice
    taken = sorted(range(r.experts), key=lambda i: -choice[i])[: r.chosen]
    weights = [scores[i] for i in taken]
    whole = sum(weights) if r.normalise else 1.0
    return taken, [w / whole * r.scale for w in weights]


def by_hand(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    """One token after another, one expert after another."""
    rows = []
    for token in x:
        taken, weights = chosen_by_hand(moe.router, token)
        row = sum(w * moe.experts[i](token) for i, w in zip(taken, weights, strict=True))
        rows.append(row if moe.shared is None else row + moe.shared(token))
    return torch.stack(rows)


@st.composite
def routings(draw):
    method = draw(st.sampled_from(["greedy", "group_limited_greedy", "noaux_tc"]))
    groups = 1 if method == "greedy" else draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    size = draw(st.integers(2, 5))
    return Routing(
        experts=groups * size,
        chosen=draw(st.integers(1, kept * size)),
        method=method,
        score=draw(st.sampled_from(["softmax", "sigmoid"])),
        groups=groups,
        kept_groups=kept,
        normalise=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.0, 16.0])),
    )


def made(routing: Routing, seed: int, *, shared: int = 0) -> MoE:
    torch.manual_seed(seed)
    moe = MoE(12, 8, routing, shared_width=shared)
    if moe.router.bias is not None:
        torch.nn.init.uniform_(moe.router.bias, 0.0, 0.6)  # where it makes choices negative, masked experts tie at 0
    return moe


@settings(max_examples=80, deadline=None)
@given(routing=routings(), seed=st.integers(0, 10_000), tokens=st.integers(1, 9), shared=st.sampled_from([0, 10]))
def test_experts_together_are_experts_one_by_one(routing, seed, tokens, shared):
    moe = made(routing, seed, shared=shared)
    x = torch.randn(tokens, 12)
    with torch.no_grad():
        # Worst seen: 3e-6, on values up to 20.
        torch.testing.assert_close(moe(x), by_hand(moe, x), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(routing=routings(), seed=st.integers(0, 10_000), cut=st.integers(1, 8))
def test_a_token_does_not_depend_on_its_neighbours(routing, seed, cut):
    moe = made(routing, seed)
    x = torch.randn(9, 12)
    with torch.no_grad():
        parts = torch.cat([moe(x[:cut]), moe(x[cut:])])
        torch.testing.assert_close(moe(x), parts, rtol=1e-6, atol=1e-6)


def test_each_expert_is_called_once():
    moe = made(Routing(experts=64, chosen=6), 0)
    calls = []
    for number, expert in enumerate(moe.experts):
        expert.register_forward_hook(lambda m, args, out, n=number: calls.append((n, len(args[0]))))
    with torch.no_grad():
        moe(torch.randn(300, 12))
    assert len({n for n, _ in calls}) == len(calls) <= 64
    assert sum(size for _, size in calls) == 6 * 300
    assert all(size for _, size in calls), "an expert without tokens is left out"


def test_gradients_are_those_of_the_plain_loop():
    routing = Routing(experts=8, chosen=2, method="noaux_tc", score="sigmoid", groups=2, normalise=True, scale=2.0)
    moe = made(routing, 3, shared=6)
    x = torch.randn(5, 12, requires_grad=True)
    moe(x).square().sum().backward()
    found = {name: p.grad for name, p in moe.named_parameters() if name != "router.bias"}
    assert all(g is not None for g in found.values()), "an idle expert's gradient is 0, not missing"
    assert moe.router.bias.grad is None, "the bias takes part in the choice only"
    assert sum(bool((g == 0).all()) for g in found.values()) >= 3, "some expert is idle here"
    again = x.detach().clone().requires_grad_()
    moe.zero_grad()
    rows = []
    for token in again:
        routed = moe.router(token[None])
        pairs = zip(routed.experts[0].tolist(), routed.weights[0], strict=True)
        rows.append(sum(w * moe.experts[i](token) for i, w in pairs) + moe.shared(token))
    torch.stack(rows).square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-5, atol=1e-5)
    for name, p in moe.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-5, atol=1e-5)


def test_both_layouts_say_the_same():
    torch.manual_seed(0)
    one, fused = Experts(12, 8, 5), FusedExperts(12, 8, 5)
    with torch.no_grad():
        for number, expert in enumerate(one):
            fused.gate_up[number] = torch.cat((expert.gate.weight, expert.up.weight)).T
            fused.down[number] = expert.down.weight.T
    x, experts = torch.randn(7, 12), torch.randint(0, 5, (7, 3))
    weights = torch.rand(7, 3)
    torch.testing.assert_close(one(x, experts, weights), fused(x, experts, weights), rtol=1e-5, atol=1e-6)


def test_masked_experts_stand_at_zero():
    """As published: where all experts of the kept group have negative choices, those of the other group win."""
    routing = Routing(experts=4, chosen=3, method="noaux_tc", score="sigmoid", groups=2, kept_groups=1)
    router = Router(12, routing)
    with torch.no_grad():
        router.weight.zero_()
        router.bias.copy_(torch.tensor([-0.6, -0.7, -0.9, -0.9]))
    routed = router(torch.randn(2, 12))
    assert [sorted(row) for row in routed.experts.tolist()] == [[0, 2, 3]] * 2
    assert routed.weights.tolist() == [[0.5] * 3] * 2


def test_the_router_computes_in_float32():
    """In bfloat16 the scores of 64 experts would collide."""
    moe = made(Routing(experts=64, chosen=6), 1).bfloat16()
    x = torch.randn(40, 12, dtype=torch.bfloat16)
    routed = moe.router(x)
    exact = F.linear(x.double(), moe.router.weight.double()).softmax(-1)
    assert routed.scores.dtype == routed.weights.dtype == torch.float32
    torch.testing.assert_close(routed.scores.double(), exact, rtol=1e-5, atol=1e-7)
    assert moe(x).dtype == torch.bfloat16
    moe(x).float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters())


def test_no_tokens():
    moe = made(Routing(experts=4, chosen=2), 0, shared=6)
    assert moe(torch.zeros(0, 12)).shape == (0, 12)
    with torch.no_grad():
        assert moe(torch.zeros(0, 12)).shape == (0, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "best"}, "method is 'best'; expected greedy or group_limited_greedy or noaux_tc"),
        ({"score": "relu"}, "score is 'relu'"),
        ({"chosen": 9}, "takes 9 of 8 experts"),
        ({"groups": 3}, "must divide into the groups"),
        ({"groups": 2, "kept_groups": 3}, "3 of 2 groups"),
        ({"method": "noaux_tc", "groups": 8}, "needs 2 experts a group"),
    ],
)
def test_impossible_routing_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Routing(**{"experts": 8, "chosen": 2, **change})


def test_balance_is_one_when_even_and_larger_otherwise():
    scores = torch.full((6, 4), 0.25)
    even = Routed(torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3], [0, 1], [2, 3]]), torch.ones(6, 2), scores)
    assert balance_loss(even, [0, 6]) == pytest.approx(1.0)
    assert balance_loss(even, [0, 4, 4, 6]) == pytest.approx(1.0), "an empty sequence has no share"
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(6, 4)
    one_sided = Routed(torch.tensor([[0, 1]] * 6), torch.ones(6, 2), skewed)
    assert balance_loss(one_sided, [0, 6]) == pytest.approx(2 * 0.7 + 2 * 0.1)
    assert balance_loss(one_sided, [0, 2, 6], [True, False]) == balance_loss(one_sided, [0, 2])
    assert balance_loss(one_sided, [0, 2, 6], [False, False]) == 0.0


def test_routers_are_watched_only_inside():
    moe = made(Routing(experts=4, chosen=2), 0)
    with watched(moe) as seen:
        moe(torch.randn(5, 12))
    moe(torch.randn(5, 12))
    assert [r.experts.shape for r in seen] == [(5, 2)]
    balance_loss(seen[0], [0, 2, 5]).backward()
    assert moe.router.weight.grad is not None
