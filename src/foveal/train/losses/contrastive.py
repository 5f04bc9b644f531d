"""CLIP's loss: every picture finds its text among all texts, and every text its picture (Radford et al. 2021, fig. 3).

    loss = mean_i (log sum_j exp(s <x_i, y_j>) - s <x_i, y_i>) / 2  +  the same with pictures x and texts y exchanged

Over W processes with N pairs each, j runs over all W N columns, and i over the process's own N rows, or with `full`
over all (each process then computes the same number, W times the work). The mean over processes of the loss is
in both cases that of one process with all pairs; see `exchange` for the gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, distributed

from foveal.core.errors import InputError, neighbours
from foveal.core.shapes import Float
from foveal.train.losses.blocks import expected, log_sum_exp
from foveal.train.losses.exchange import World, gather

Gather = Literal["grad", "no_grad", "local"]
GATHERS = ("grad", "no_grad", "local")


def contrastive_loss(
    images: Float[Tensor, "N D"],
    texts: Float[Tensor, "N D"],
    scale: Tensor | float,
    *,
    group: distributed.ProcessGroup | None = None,
    gather: Gather = "grad",
    full: bool = False,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """The softmax loss of N pairs; row i of `texts` belongs to row i of `images`.

    Args:
        images, texts: vectors of length 1.
        scale: inverse temperature s; CLIP learns its logarithm, pass the exponential.
        group: processes whose pairs are compared; None: all there are.
        gather: "grad": columns of all processes, with their gradients: the gradient of one process with all pairs.
            "no_grad": columns of all processes, as constants. With `full` the process's own are not: its features
            get their exact gradient, without the factor W by which the mean over processes divides.
            "local": the process's own pairs only, nothing is exchanged.
        full: rows of all processes, not only this one's.
        chunk: largest side of a block of logits, so that they take `chunk`^2 numbers however many pairs there are;
            None: all in one block, N x W N, or with `full` W N x W N.

    Computed in float32 at least, outside autocast.

    Raises:
        InputError: features that do not match each other or those of other processes; an unknown `gather`.
    """
    images, texts, scale = prepared(images, texts, scale, chunk)
    with torch.autocast(images.device.type, enabled=False):
        sides = _sides(images, texts, group, gather, full)
        return torch.stack([(side.sums(scale, chunk) - side.partners(scale)).mean() for side in sides]).mean()


class Distilled(NamedTuple):
    """Two losses of a student, to be added with weights of one's choice (DistillCLIP adds them as they are)."""

    contrastive: Tensor
    distill: Tensor


def distill_loss(
    images: Float[Tensor, "N D"],
    texts: Float[Tensor, "N D"],
    scale: Tensor | float,
    teacher_images: Float[Tensor, "N E"],
    teacher_texts: Float[Tensor, "N E"],
    teacher_scale: Tensor | float,
    *,
    group: distributed.ProcessGroup | None = None,
    gather: Gather = "grad",
    full: bool = False,
    chunk: int | None = None,
) -> Distilled:
    """The softmax loss, and the cross-entropy between the teacher's distribution over columns and the student's.

        distill = mean_i (log sum_j exp(l_ij) - sum_j p_ij l_ij) / 2 + the same for texts,  p_i = softmax(teacher's l_i)

    No gradient reaches the teacher, whose features may have another width. The rest as in `contrastive_loss`.
    """
    images, texts, scale = prepared(images, texts, scale, chunk)
    with torch.no_grad():
        teacher_images, teacher_texts, teacher_scale = prepared(teacher_images, teacher_texts, teacher_scale, chunk)
    if len(teacher_images) != len(images):
        raise InputError(f"distillation: {len(images)} pairs, but the teacher saw {len(teacher_images)}.")
    if teacher_images.dtype != images.dtype:
        teacher_images, teacher_texts, teacher_scale = (
            t.to(images.dtype) for t in (teacher_images, teacher_texts, teacher_scale)
        )
    with torch.autocast(images.device.type, enabled=False):
        sides = _sides(images, texts, group, gather, full)
        with torch.no_grad():
            shown = _sides(teacher_images, teacher_texts, group, gather, full)
        hard, soft = [], []
        for side, other in zip(sides, shown, strict=True):
            sums = side.sums(scale, chunk)
            wanted = expected(side.rows, side.cols, scale, (other.rows, other.cols, teacher_scale), chunk)
            hard.append((sums - side.partners(scale)).mean())
            soft.append((sums - wanted).mean())
        return Distilled(torch.stack(hard).mean(), torch.stack(soft).mean())


@dataclass(frozen=True)
class _Side:
    """Rows that look for their partners among columns; row i's is column `first + i`."""

    rows: Tensor
    cols: Tensor
    first: int = 0

    def sums(self, scale: Tensor, chunk: int | None) -> Tensor:
        """log sum_j exp(l_ij)."""
        return log_sum_exp(self.rows, self.cols, scale, chunk)

    def partners(self, scale: Tensor) -> Tensor:
        """The logits of the pairs."""
        return scale * (self.rows * self.cols[self.first : self.first + len(self.rows)]).sum(1)


def _sides(
    images: Tensor, texts: Tensor, group: distributed.ProcessGroup | None, how: str, full: bool
) -> Sequence[_Side]:
    """Pictures among texts, and texts among pictures."""
    if how not in GATHERS:
        raise InputError(f"gather is {how!r}; {neighbours(how, GATHERS)}")
    world = World.of(group)
    if how == "local" or world.size == 1:
        return _Side(images, texts), _Side(texts, images)
    world.check(images)
    if how == "grad":
        every = gather(world, images, texts)
    else:
        with torch.no_grad():
            every = gather(world, images, texts)
    first = world.rank * len(images)
    if not full:
        return _Side(images, every[1], first), _Side(texts, every[0], first)
    if how == "no_grad":
        stop = first + len(images)
        every = tuple(torch.cat((e[:first], own, e[stop:])) for e, own in zip(every, (images, texts), strict=True))
    return _Side(every[0], every[1]), _Side(every[1], every[0])


def prepared(images: Tensor, texts: Tensor, scale: Tensor | float, chunk: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Features and scale in one type, float32 or more; raises `InputError` where they are no pairs."""
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise InputError(
            f"pictures have features {tuple(images.shape)} and texts {tuple(texts.shape)}; pairs need equal shapes "
            "[N, D] with N at least 1."
        )
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be at least 1, or None for all pairs at once.")
    kind = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
    return images.to(kind), texts.to(kind), scalar(scale, kind, images.device, "scale")


def scalar(value: Tensor | float, kind: torch.dtype, device: torch.device, name: str) -> Tensor:
    """A scale or bias as a tensor []; published files hold some as [1]."""
    value = torch.as_tensor(value, dtype=kind, device=device)
    if value.numel() != 1:
        raise InputError(f"{name} has shape {tuple(value.shape)}; it is one number.")
    return value.reshape(())
