"""SigLIP's loss: every pair of a picture and a text is judged by itself (Zhai et al. 2023, algorithm 1).

    loss = -1/N sum_i sum_j log sigmoid(z_ij (s <x_i, y_j> + b)),   z_ij = 1 where i = j, else -1

Over W processes with N pairs each, i runs over the process's own N pictures and j over all W N texts. No row needs a
normaliser, so the texts of the others may come one process after another (section 3.3), and the memory for logits
does not depend on W. How they come does not change the result:

    bidir   both ways round the ring, (W - 1) / 2 times: the shortest way
    shift   one way round the ring, W - 1 times
    reduce  each process tells its texts to all, in turn; gradients return as a sum
    gather  all texts at once: W times the memory for features, one call
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, distributed

from foveal.core.errors import InputError, neighbours
from foveal.core.shapes import Float
from foveal.train.losses.blocks import log_sigmoid_sum
from foveal.train.losses.contrastive import prepared, scalar
from foveal.train.losses.exchange import World, gather, hop, told_by

Exchange = Literal["bidir", "shift", "reduce", "gather"]
EXCHANGES = ("bidir", "shift", "reduce", "gather")


def sigmoid_loss(
    images: Float[Tensor, "N D"],
    texts: Float[Tensor, "N D"],
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    group: distributed.ProcessGroup | None = None,
    exchange: Exchange = "bidir",
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """The sigmoid loss of N pairs; row i of `texts` belongs to row i of `images`.

    Args:
        images, texts: vectors of length 1.
        scale: inverse temperature s; SigLIP learns its logarithm, pass the exponential.
        bias: b. SigLIP begins at -10, as nearly all of the N^2 answers are "no".
        group: processes whose pairs are compared; None: all there are.
        exchange: how texts travel, see above.
        chunk: largest side of a block of logits; None: N x N.

    Computed in float32 at least, outside autocast.

    Raises:
        InputError: features that do not match each other or those of other processes; an unknown `exchange`.
    """
    if exchange not in EXCHANGES:
        raise InputError(f"exchange is {exchange!r}; {neighbours(exchange, EXCHANGES)}")
    images, texts, scale = prepared(images, texts, scale, chunk)
    bias = scalar(bias, images.dtype, images.device, "bias")
    with torch.autocast(images.device.type, enabled=False):
        total = images.new_zeros(())
        for others, pairs in _passing(World.of(group), texts, exchange):
            total = total + log_sigmoid_sum(images, others, scale, bias, pairs=pairs, chunk=chunk)
        return total / len(images)


def _passing(world: World, texts: Tensor, exchange: str) -> Iterator[tuple[Tensor, bool]]:
    """The texts of all processes, and whether they are this one's own."""
    if world.size == 1:
        yield texts, True
        return
    world.check(texts)
    if exchange == "gather":
        (every,) = gather(world, texts)
        for rank, others in enumerate(every.chunk(world.size)):
            yield others, rank == world.rank
    elif exchange == "reduce":
        for rank in range(world.size):
            yield told_by(world, rank, texts), rank == world.rank
    else:
        yield texts, True
        rounds, rest = divmod(world.size - 1, 2) if exchange == "bidir" else (0, world.size - 1)
        up = down = texts
        for _ in range(rounds):
            up, down = hop(world, (1, -1), up, down)
            yield up, False
            yield down, False
        for _ in range(rest):
            (up,) = hop(world, (1,), up)
            yield up, False
