"""The processes that train together. All that the loop knows of them is here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from foveal.train.optim import MasterAdamW

if TYPE_CHECKING:
    from foveal.families.load import Loaded
    from foveal.train.run import Run


class Ranks:
    """This process among those of `torch.distributed`; alone where that is not initialised. Each has the whole
    network; `foveal.train.sharded.ShardedRanks` shares it out.

    Attributes:
        rank, world: number of this process, and how many there are.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.joined = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if self.joined else 0
        self.world = distributed.get_world_size() if self.joined else 1
        self.device = device or torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages for all."""
        return self.rank == 0

    @property
    def loads_on(self) -> str:
        """The device on which the network is loaded, before `place`."""
        return str(self.device)

    def place(self, network: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Prepares a loaded network, which computes in `dtype` (None: as it is): all begin with the first's weights."""
        if dtype is not None:
            network.to(dtype)
        self.same([parameter.detach() for parameter in network.parameters()])

    def optimizer(self, rows: Sequence[tuple[str, nn.Parameter, float]], **settings: Any) -> MasterAdamW:
        """An optimizer of what this process holds; see `MasterAdamW`."""
        return MasterAdamW(rows, **settings)

    def own(self, parameter: nn.Parameter) -> Tensor:
        """What this process holds of a parameter; it shares the parameter's memory."""
        return parameter

    def rows(self, key: str, shape: Sequence[int]) -> slice | None:
        """Which rows of a checkpoint's tensor this process reads; None for all."""
        return None

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of all processes, on the first one. All must ask for it."""
        return dict(state)

    def gathered(self, run: "Run", loaded: "Loaded", *, device: str = "cpu") -> "Loaded":
        """The model with its whole network, on the first process. All must ask for it."""
        return loaded

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over all processes of each value."""
        return self._reduced(values, distributed.ReduceOp.SUM) if self.joined else list(values)

    def most(self, values: Sequence[float]) -> list[float]:
        """The largest over all processes of each value."""
        return self._reduced(values, distributed.ReduceOp.MAX) if self.joined else list(values)

    def _reduced(self, values: Sequence[float], how: distributed.ReduceOp.RedOpType) -> list[float]:
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        row = torch.tensor(list(values), dtype=kind, device=self.device)
        distributed.all_reduce(row, how)
        return [float(v) for v in row.tolist()]

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all processes; one that does not exist counts as zero.

        With zeros instead of nothing a parameter that a step does not reach moves alike however many processes
        there are, and as in the releases, whose text-only batches run an empty picture.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not self.joined or not parameters:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.float().reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Gives every process the first one's values."""
        if self.joined:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.joined:
            distributed.barrier()
