"""What keeps experts evenly used (DeepSeek-V2, section 2.2.3; by sequence as its release and DeepSeek-V3 do it).

    with watched(network) as routed:              # what every router decides, in the order of the layers
        out = network(batch)
    uneven, weight = balance_losses(routed, batch.starts.tolist(), Balance(experts=config.balance))

For T tokens of which each takes K of E experts, with s_ti the score of expert i for token t, divided by the sum of the
token's scores:

    experts        sum_i f_i P_i      f_i = E/(K T) x how many tokens chose i,  P_i = mean_t s_ti        (eq. 23 to 25)
    devices        sum_d f'_d P'_d    f'_d = mean of f_i, P'_d = sum of P_i over the experts of device d (eq. 26 to 28)
    communication  sum_d f''_d P'_d   f''_d = D/(M T) x how many tokens were sent to device d            (eq. 29 to 31)

All are 1 where scores and choices are even. Only P carries a gradient. The devices of the paper are the groups of
`Routing`, and M is how many of them a token may reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.errors import ConfigError, InputError
from foveal.core.shapes import Float
from foveal.nn.moe import Routed, balance_loss
from foveal.train.losses.weighted import Weighted


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Weights of the three losses; DeepSeek-V2 was trained with 0.003, 0.05 and 0.02, its release states 0.001, 0, 0.

    Attributes:
        experts, devices, communication: the weights (alpha 1, 2, 3).
        groups: D, devices among which the experts are divided in order.
        kept_groups: M, devices that a token may reach.
        by_sequence: T are the tokens of one sequence (`seq_aux`), not those of the whole pack.
    """

    experts: float = 0.0
    devices: float = 0.0
    communication: float = 0.0
    groups: int = 1
    kept_groups: int = 1
    by_sequence: bool = True

    def __post_init__(self) -> None:
        for name in ("experts", "devices", "communication"):
            if getattr(self, name) < 0:
                raise ConfigError(f"Balance.{name} is {getattr(self, name)}; a weight is 0 or more.")
        if not 1 <= self.kept_groups <= self.groups:
            raise ConfigError(f"Balance: tokens reach {self.kept_groups} of {self.groups} groups; expected 1 or more.")
        if self.groups == 1 and (self.devices or self.communication):
            raise ConfigError(
                "Balance: devices and communication have weights but there is one group; set `groups` as in Routing."
            )


def balance_losses(layers: Sequence[Routed], starts: Sequence[int], settings: Balance) -> Weighted:
    """The losses of all layers of one pack, times their weights.

    Args:
        layers: from `foveal.nn.moe.watched`.
        starts: the B + 1 boundaries of the pack's sequences.

    Returns:
        The sum over sequences that have tokens, and their number; without `by_sequence` the loss of the pack times
        its tokens, and their number.

    Raises:
        InputError: no layers, or other tokens than `starts` says.
    """
    if not layers:
        raise InputError("balance loss: no router was watched; use it on a network with experts, inside `watched`.")
    if any(len(layer.scores) != starts[-1] for layer in layers):
        found = sorted({len(layer.scores) for layer in layers})
        raise InputError(
            f"balance loss: routers saw {found} tokens, the pack has {starts[-1]}; watch one forward pass."
        )
    if any(layer.scores.shape[1] % settings.groups for layer in layers):
        experts = layers[0].scores.shape[1]
        raise InputError(f"balance loss: {experts} experts do not divide into {settings.groups} groups; see Routing.")
    parts = [(a, b) for a, b in pairwise(starts) if a < b] if settings.by_sequence else [(0, starts[-1])]
    sums = [
        _uneven(Routed(layer.experts[a:b], layer.weights[a:b], _shares(layer.scores[a:b])), settings)
        for layer in layers
        for a, b in parts
    ]
    total = torch.stack(sums).sum() if sums else layers[0].scores.sum()  # no token at all: 0
    return Weighted(total, len(parts)) if settings.by_sequence else Weighted(total * starts[-1], starts[-1])


def _uneven(routed: Routed, settings: Balance) -> Tensor:
    """The weighed losses of one layer and one stretch of tokens."""
    total = routed.scores.sum() * 0.0
    if settings.experts:
        total = total + settings.experts * balance_loss(routed, (0, len(routed.scores)))
    if settings.devices:
        total = total + settings.devices * device_balance(routed, settings.groups)
    if settings.communication:
        total = total + settings.communication * communication_balance(routed, settings.groups, settings.kept_groups)
    return total


def device_balance(routed: Routed, groups: int) -> Float[Tensor, ""]:
    """How unevenly tokens use the groups of experts: sum_d f'_d P'_d."""
    count = routed.scores.shape[1]
    chosen = F.one_hot(routed.experts, count).sum((0, 1)) * (count / routed.experts.numel())
    return (chosen.view(groups, -1).mean(1) * _of_groups(routed, groups)).sum()


def communication_balance(routed: Routed, groups: int, kept_groups: int) -> Float[Tensor, ""]:
    """How unevenly they are sent to the groups, however many experts they use there: sum_d f''_d P'_d."""
    tokens, count = routed.scores.shape
    sent = F.one_hot(routed.experts // (count // groups), groups).amax(1).sum(0) * (groups / (kept_groups * tokens))
    return (sent * _of_groups(routed, groups)).sum()


def _of_groups(routed: Routed, groups: int) -> Float[Tensor, "G"]:
    """P': the mean score of each group."""
    return routed.scores.mean(0).view(groups, -1).sum(1)


def _shares(scores: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
    """Scores over their sum (DeepSeek-V3, eq. 19). Those of a softmax stay, and so do their gradients."""
    return scores / scores.sum(1, keepdim=True).clamp_min(1e-20)
