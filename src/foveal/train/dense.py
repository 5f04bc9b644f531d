"""Throw-away heads that make every visual token say what it shows and where: dense supervision.

A tower with rotary positions knows only where patches lie from each other. Asking every merged token for the
class of its object, the object's box in the picture, and its own place teaches it the picture's edges,
long before a language model could. The heads are dropped after training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.shapes import Float
from foveal.data.dense import Dense
from foveal.data.shapes import COLOURS

BINS = 50
"""Steps of a coordinate from 0 to 1."""


class DenseHeads(nn.Module):
    """Linear read-outs of visual tokens [M, D]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.thing = nn.Linear(width, classes)
        self.colour = nn.Linear(width, len(COLOURS))
        self.box = nn.Linear(width, 4 * BINS)
        self.place = nn.Linear(width, 2 * BINS)
        self.middle = nn.Linear(width, 1)

    def loss(self, tokens: Float[Tensor, "M D"], target: Dense) -> tuple[Tensor, dict[str, float]]:
        """The sum of all read-outs' losses, and how right they are (shares of cells, box error in 0..1)."""
        thing = torch.from_numpy(target.thing)
        full = thing > 0
        scores = self.thing(tokens).float()
        weight = torch.where(full, 1.0, 0.3)
        named = (F.cross_entropy(scores, thing, reduction="none", label_smoothing=0.05) * weight).sum() / weight.sum()
        place, _ = two_hot_loss(self.place(tokens).float(), torch.from_numpy(target.place))
        box, error = two_hot_loss(self.box(tokens[full]).float(), torch.from_numpy(target.box)[full])
        middle = F.binary_cross_entropy_with_logits(
            self.middle(tokens)[:, 0].float(), torch.from_numpy(target.middle), pos_weight=torch.tensor(3.0)
        )
        total = 2 * named + 0.5 * place + box + middle
        colour = torch.from_numpy(target.colour)
        plain = colour >= 0
        figures = {
            "named": (scores.argmax(1) == thing)[full].float().mean().item(),
            "empty": (scores.argmax(1) == 0)[~full].float().mean().item(),
            "box_error": error,
            "place_loss": place.item(),
            "middle_loss": middle.item(),
        }
        if plain.any():
            total = total + 0.5 * F.cross_entropy(self.colour(tokens[plain]).float(), colour[plain])
        return total, figures


class WordHead(nn.Module):
    """Names every visual token by the embeddings of names, the same that the language model reads and writes.

    A visual token that lies near the embedding of "dog" can be named by copying, and found by comparing: both are
    what a decoder with few layers learns last when nothing tells it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.empty = nn.Parameter(0.03 * torch.randn(width))  # at 0 a cosine has no finite gradient
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def loss(
        self, tokens: Float[Tensor, "M D"], names: Float[Tensor, "C D"], target: Dense
    ) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of cosines to `names` (row c - 1 belongs to class c) and to a learned "nothing here"."""
        thing = torch.from_numpy(target.thing)
        known = F.normalize(torch.cat((self.empty[None].to(names.dtype), names)).float(), dim=-1)
        scores = self.sharpness.float() * F.normalize(tokens.float(), dim=-1) @ known.T
        weight = torch.where(thing > 0, 1.0, 0.3)
        each = F.cross_entropy(scores, thing, reduction="none", label_smoothing=0.05)
        right = (scores.argmax(1) == thing)[thing > 0].float().mean().item()
        return (each * weight).sum() / weight.sum(), {"worded": right}


def two_hot_loss(scores: Float[Tensor, "N C"], values: Float[Tensor, "N A"]) -> tuple[Tensor, float]:
    """Cross-entropy of A coordinates in 0..1 against the two nearest of `BINS` steps, and the mean error."""
    scores = scores.view(*values.shape, BINS)
    at = values.clamp(0, 1) * (BINS - 1)
    low = at.floor().clamp(max=BINS - 2).long()
    high = at - low
    logs = scores.log_softmax(-1)
    picked = logs.gather(-1, low[..., None])[..., 0] * (1 - high) + logs.gather(-1, low[..., None] + 1)[..., 0] * high
    with torch.no_grad():
        guess = (logs.exp() * torch.linspace(0, 1, BINS)).sum(-1)
        error = (guess - values).abs().mean().item()
    return -picked.mean(), error
