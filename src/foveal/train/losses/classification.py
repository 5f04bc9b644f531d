"""Cross-entropy of classes, as a picture classifier is trained (Dosovitskiy et al. 2021, section 4.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.errors import InputError
from foveal.core.shapes import Float
from foveal.train.losses.weighted import Weighted


def classification_loss(scores: Float[Tensor, "N C"], labels: Tensor, *, smoothing: float = 0.0) -> Weighted:
    """Sum over N pictures of the cross-entropy in float32, and N.

    Args:
        labels: class of each picture [N], or shares of classes [N, C] where pictures are mixed.
        smoothing: share of a label that is spread evenly over all classes (Szegedy et al. 2016, section 7).

    Raises:
        InputError: labels of another number, shape or range; smoothing outside 0 to 1.
    """
    count, classes = scores.shape
    if not 0 <= smoothing < 1:
        raise InputError(f"label smoothing is {smoothing}; expected 0 or more, less than 1.")
    mixed = labels.is_floating_point()
    if tuple(labels.shape) != ((count, classes) if mixed else (count,)):
        raise InputError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype} for scores [{count}, {classes}]; "
            f"pass classes [{count}] or shares of classes [{count}, {classes}]."
        )
    if not mixed and count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}; the head has {classes} classes, "
            f"0 to {classes - 1}."
        )
    kind = torch.promote_types(scores.dtype, torch.float32)
    wanted = labels.to(kind) if mixed else labels.long()
    total = F.cross_entropy(scores.to(kind), wanted, reduction="sum", label_smoothing=smoothing)
    return Weighted(total, float(count))
