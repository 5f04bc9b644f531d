"""Mixture of experts: a router chooses experts for every token, and each expert computes all of its tokens together.

    x [T, D] ── Router ──▶ Routed: experts [T, K], weights [T, K]
       └─────── dispatch: tokens sorted by expert, one call an expert, results back in their places ──▶ [T, D]

Two layouts of the same thing: `Experts` keeps one module an expert, as DeepSeek's files do; `FusedExperts` keeps one
tensor for all, as Qwen3's do.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float, Int
from foveal.nn.mlp import GatedMLP
from foveal.nn.routing import Routing


@dataclass(frozen=True)
class Routed:
    """The experts of every token [T, K], their weights [T, K], and all scores [T, E], both in float32."""

    experts: Tensor
    weights: Tensor
    scores: Tensor


def greedy(scores: Float[Tensor, "T E"], chosen: int) -> Int[Tensor, "T K"]:
    """The experts with the best scores."""
    return scores.topk(chosen, dim=-1).indices


def group_limited_greedy(
    scores: Float[Tensor, "T E"], chosen: int, *, groups: int, kept_groups: int
) -> tuple[Int[Tensor, "T K"], Float[Tensor, "T E"]]:
    """The best experts of the groups whose best expert is best, and the scores with the other groups at 0."""
    best = scores.view(len(scores), groups, scores.shape[-1] // groups).amax(-1)
    limited = _limited(scores, best, kept_groups)
    return limited.topk(chosen, dim=-1).indices, limited


def noaux_tc(
    scores: Float[Tensor, "T E"], bias: Float[Tensor, "E"], chosen: int, *, groups: int, kept_groups: int
) -> Int[Tensor, "T K"]:
    """The best experts by score plus bias, of the groups whose two best have the largest sum.

    Experts of the other groups stand at 0, as published: where all choices are negative, one of them may win.
    """
    choice = scores + bias
    best = choice.view(len(choice), groups, choice.shape[-1] // groups).topk(2, dim=-1).values.sum(-1)
    return _limited(choice, best, kept_groups).topk(chosen, dim=-1).indices


def _limited(scores: Float[Tensor, "T E"], best: Float[Tensor, "T N"], kept: int) -> Float[Tensor, "T E"]:
    """`scores` with 0 for the experts of all groups but the `kept` ones that are best."""
    groups = torch.zeros_like(best, dtype=torch.bool).scatter(-1, best.topk(kept, dim=-1).indices, True)
    return scores.masked_fill(~groups.repeat_interleave(scores.shape[-1] // best.shape[-1], dim=-1), 0.0)


class Router(nn.Module):
    """Scores of all experts from one linear map in float32, whatever the type of the weights; then the choice."""

    def __init__(self, width: int, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.weight = nn.Parameter(torch.empty(routing.experts, width))
        self.bias = nn.Parameter(torch.zeros(routing.experts)) if routing.biased else None
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, x: Float[Tensor, "T D"]) -> Routed:
        r = self.routing
        logits = F.linear(x.float(), self.weight.float())
        scores = source = logits.softmax(-1) if r.score == "softmax" else logits.sigmoid()
        limits = {"groups": r.groups, "kept_groups": r.kept_groups}
        # No gradient goes through the choice, only through the weights.
        if self.bias is not None:
            experts = noaux_tc(scores.detach(), self.bias.detach().float(), r.chosen, **limits)
        elif r.method == "group_limited_greedy":
            experts, source = group_limited_greedy(scores, r.chosen, **limits)
        else:
            experts = greedy(scores, r.chosen)
        weights = source.gather(-1, experts)
        if r.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routed(experts, weights * r.scale, scores)


@contextmanager
def watched(network: nn.Module) -> Iterator[list[Routed]]:
    """Collects what every router of `network` decides inside, in the order of the layers, for `balance_loss`.

    Leave it before the backward pass: where activations are checkpointed, routers decide once more there.
    """
    seen: list[Routed] = []
    hooks = [
        module.register_forward_hook(lambda *call: seen.append(call[-1]))
        for module in network.modules()
        if isinstance(module, Router)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def balance_loss(routed: Routed, starts: Sequence[int], counted: Sequence[bool] | None = None) -> Float[Tensor, ""]:
    """How unevenly the sequences of a pack use the experts of one layer (DeepSeek-V2, section 2.2.3, eq. 23 to 25).

    Per sequence, the sum over experts of (share of the choices that fell on it, 1 if even) x (mean score); then the
    mean over sequences. `starts` holds the B + 1 boundaries, `counted` which sequences count (None: all; the loss of
    none is 0). Training adds it with a small weight.
    """
    losses = []
    for (a, b), counts in zip(pairwise(starts), counted or [True] * (len(starts) - 1), strict=True):
        if a < b and counts:
            chosen, scores = routed.experts[a:b], routed.scores[a:b]
            count = scores.shape[1]
            share = F.one_hot(chosen, count).sum((0, 1)) * (count / chosen.numel())
            losses.append((share * scores.mean(0)).sum())
    return torch.stack(losses).mean() if losses else routed.scores.sum() * 0.0


def dispatch(
    x: Float[Tensor, "T D"],
    experts: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
    count: int,
    compute: Callable[[int, Tensor], Tensor],
) -> Float[Tensor, "T D"]:
    """The weighted sum of what each token's experts say of it.

    Args:
        count: E; the experts are numbered 0 to E - 1.
        compute: (number of an expert, its tokens [N, D]) -> [N, D].

    Tokens are sorted by expert once and each expert is called once; one token alone goes from expert to expert as they
    come. An expert without tokens is left out, but when gradients are recorded it is called with none, so that its
    gradient is 0 and not missing. Weights are applied and summed in float32.
    """
    tokens, chosen = experts.shape
    if tokens == 1 and not torch.is_grad_enabled():
        said = torch.cat([compute(number, x) for number in experts[0].tolist()])
        return torch.mm(weights, said.float()).to(x.dtype)
    numbers, order = experts.flatten().sort(stable=True)
    bounds = torch.searchsorted(numbers, torch.arange(count + 1, device=numbers.device)).tolist()
    rows = x[order // chosen]
    parts = [
        compute(number, rows[start:stop])
        for number, (start, stop) in enumerate(pairwise(bounds))
        if start < stop or torch.is_grad_enabled()
    ]
    del rows  # K rows a token, as wide as the token; so are the two that follow
    said = torch.cat(parts) if parts else x[:0]
    del parts
    said = said[order.argsort()].view(tokens, chosen, x.shape[-1])
    return torch.bmm(weights[:, None], said.float())[:, 0].to(x.dtype)


class Experts(nn.ModuleList):
    """One gated MLP an expert, each with tensors of its own."""

    def __init__(self, width: int, mlp_width: int, count: int) -> None:
        super().__init__(GatedMLP(width, mlp_width) for _ in range(count))

    def forward(
        self, x: Float[Tensor, "T D"], experts: Int[Tensor, "T K"], weights: Float[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        return dispatch(x, experts, weights, len(self), lambda number, rows: self[number](rows))


class FusedExperts(nn.Module):
    """Gated MLPs in one tensor for all: `gate_up` [E, D, 2F], gates first, and `down` [E, F, D] (rows times matrix)."""

    def __init__(self, width: int, mlp_width: int, count: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(count, width, 2 * mlp_width))
        self.down = nn.Parameter(torch.empty(count, mlp_width, width))
        nn.init.normal_(self.gate_up, std=width**-0.5)
        nn.init.normal_(self.down, std=mlp_width**-0.5)

    def forward(
        self, x: Float[Tensor, "T D"], experts: Int[Tensor, "T K"], weights: Float[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        def compute(number: int, rows: Tensor) -> Tensor:
            gate, up = (rows @ self.gate_up[number]).chunk(2, dim=-1)
            return (F.silu(gate) * up) @ self.down[number]

        return dispatch(x, experts, weights, len(self.gate_up), compute)


class MoE(nn.Module):
    """Routed experts, and perhaps one shared MLP that every token passes and that is added unweighed."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        routing: Routing,
        *,
        shared_width: int = 0,
        experts: Callable[[int, int, int], nn.Module] = Experts,
    ) -> None:
        """`mlp_width` is that of an expert, `shared_width` that of the shared MLP (0: none)."""
        super().__init__()
        self.router = Router(width, routing)
        self.experts = experts(width, mlp_width, routing.experts)
        self.shared = GatedMLP(width, shared_width) if shared_width else None

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        routed = self.router(x)
        mixed = self.experts(x, routed.experts, routed.weights)
        return mixed if self.shared is None else mixed + self.shared(x)
