"""Rows of other processes: gathered, passed along a ring, or said by each in turn; gradients come back the same way.

The convention of all losses here: the mean over processes of the loss is the loss, and the mean over processes of a
parameter's gradients is its gradient (that is what DDP and FSDP form). So what comes back is the sum of what the
other processes found, unscaled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from foveal.core.errors import InputError
from foveal.core.shapes import Float


@dataclass(frozen=True)
class World:
    """The processes that compare their pairs: their group (None: all), this one's number in it, how many they are."""

    group: distributed.ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, group: distributed.ProcessGroup | None) -> "World":
        """The processes of `group`; with None those of the default group, or this one alone where there is none."""
        if not distributed.is_initialized():
            return cls(None, 0, 1)
        return cls(group, distributed.get_rank(group), distributed.get_world_size(group))

    def check(self, rows: Tensor) -> None:
        """Raises `InputError` on every process unless all have rows of one shape."""
        mine = torch.tensor(rows.shape, device=rows.device)
        every = mine.new_empty(self.size * 2)
        distributed.all_gather_single(every, mine, group=self.group)
        shapes = every.view(self.size, 2).tolist()
        if any(shape != shapes[0] for shape in shapes):
            said = ", ".join(f"{n} x {d}" for n, d in shapes)
            raise InputError(
                f"pairs are compared across {self.size} processes, which have {said} features; give every process the "
                "same number of pairs (drop the last, smaller batch)."
            )


def gather(world: World, *tensors: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "WN D"], ...]:
    """The rows of all processes, in their order; a row's gradient is the sum over all processes."""
    return _Gather.apply(world, *tensors)  # type: ignore[no-untyped-call]


def hop(world: World, steps: Sequence[int], *tensors: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N D"], ...]:
    """Passes tensor k to the process `steps[k]` further along the ring, and returns what arrives."""
    return _Hop.apply(world, tuple(steps), *tensors)  # type: ignore[no-untyped-call]


def told_by(world: World, source: int, tensor: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The rows of process `source`. Each process must use the result, or the others wait for its gradient."""
    return _ToldBy.apply(world, source, tensor)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, world: World, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.world, ctx.widths = world, [t.shape[1] for t in tensors]
        mine = torch.cat(tensors, dim=1)
        every = mine.new_empty(world.size * len(mine), mine.shape[1])
        distributed.all_gather_single(every, mine, group=world.group)
        results = every.split_with_sizes(ctx.widths, dim=1)
        results = tuple(r.contiguous() for r in results)
        ctx.mark_non_differentiable(
            *(r for r, needed in zip(results, ctx.needs_input_grad[1:], strict=True) if not needed)
        )
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        every = torch.cat(gradients, dim=1)
        mine = every.new_empty(len(every) // ctx.world.size, every.shape[1])
        distributed.reduce_scatter_single(mine, every, group=ctx.world.group)
        parts = mine.split_with_sizes(ctx.widths, dim=1)
        needed = ctx.needs_input_grad[1:]
        return None, *(part if need else None for part, need in zip(parts, needed, strict=True))


class _Hop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, world: World, steps: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.world, ctx.steps = world, steps
        return _swap(world, steps, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_swap(ctx.world, tuple(-step for step in ctx.steps), gradients)


def _swap(world: World, steps: tuple[int, ...], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    sent = [t.contiguous() for t in tensors]
    received = tuple(torch.empty_like(t) for t in sent)
    calls = []
    for step, out, into in zip(steps, sent, received, strict=True):
        to, source = (world.rank + step) % world.size, (world.rank - step) % world.size
        calls.append(distributed.P2POp(distributed.isend, out, group=world.group, group_peer=to))
        calls.append(distributed.P2POp(distributed.irecv, into, group=world.group, group_peer=source))
    for work in distributed.batch_isend_irecv(calls):
        work.wait()
    return received


class _ToldBy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, world: World, source: int, tensor: Tensor) -> Tensor:
        ctx.world, ctx.source = world, source
        said = tensor.clone(memory_format=torch.contiguous_format)
        distributed.broadcast(said, group=world.group, group_src=source)
        return said

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor | None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.reduce(total, group=ctx.world.group, group_dst=ctx.source)
        return None, None, total if ctx.source == ctx.world.rank else torch.zeros_like(total)
