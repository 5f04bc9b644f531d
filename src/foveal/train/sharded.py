"""Weights, gradients and moments spread over the processes (FSDP2: `torch.distributed.fsdp.fully_shard`).

Every layer of a decoder and every block of a tower is gathered when it computes and let go after it; what is left
(embeddings, adapter, head) is one more such unit. A process holds rows `rank * c` to `(rank + 1) * c - 1` of every
tensor, c = ceil(rows / processes). Single numbers (the scale and the offset of two towers) have no rows to share:
every process holds them, and their gradients are added up as without shards.

Checkpoints and exports are whole: tensors are gathered one after another by the first process, which writes the same
files as a process alone. So a run goes on with another number of processes, sharded or not, and nothing is unpickled
(the reader of torch.distributed.checkpoint's own files unpickles their metadata, as of torch 2.13).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from foveal.core.errors import ConfigError
from foveal.families.load import Loaded
from foveal.train.optim import MasterAdamW
from foveal.train.ranks import Ranks
from foveal.train.run import Run


class ShardedRanks(Ranks):
    """The processes that share one network; see `Ranks`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.mesh: DeviceMesh = init_device_mesh(device.type, (self.world,))
        self.shapes: dict[str, torch.Size] = {}
        self.numbers: list[nn.Parameter] = []

    @property
    def loads_on(self) -> str:
        """The machine's memory: an accelerator may be too small for the whole network."""
        return "cpu"

    def place(self, network: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Leaves this process its share of every parameter. Raises `ConfigError` for networks that cannot be shared."""
        if dtype is not None:
            network.to(dtype)
        refuse(network)
        rows = {name: parameter for name, parameter in network.named_parameters() if parameter.numel() > 1}
        self.numbers = [parameter for parameter in network.parameters() if parameter.numel() == 1]
        self.shapes = {name: parameter.shape for name, parameter in rows.items()}
        for number in self.numbers:
            number.data = number.data.to(self.device)
        self.same([number.detach() for number in self.numbers])
        # Gradients are added up in float32, as without shards.
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for part in [*units(network), network]:
            whole = fully_shard(part, mesh=self.mesh, mp_policy=policy, ignored_params=set(self.numbers))
            # The loss is a sum over processes already. gloo has no mean, and nccl's scaled sum is not needed.
            whole.set_gradient_divide_factor(1.0)
            whole.set_force_sum_reduction_for_comms(True)

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients of rows are added up already when the backward pass ends; what does not exist counts as zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        numbers = {id(number) for number in self.numbers}
        super().reduce([parameter for parameter in parameters if id(parameter) in numbers])

    def optimizer(self, rows: Sequence[tuple[str, nn.Parameter, float]], **settings: Any) -> MasterAdamW:
        return ShardedAdamW(rows, **settings)

    def own(self, parameter: nn.Parameter) -> Tensor:
        return shard(parameter)

    def rows(self, key: str, shape: Sequence[int]) -> slice | None:
        """Which rows of a checkpoint's tensor this process reads; None for all."""
        name = key.partition("/")[2]
        if name not in self.shapes or not shape:
            return None
        step = -(-shape[0] // self.world)
        first = min(self.rank * step, shape[0])
        return slice(first, min(first + step, shape[0]))

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of `MasterAdamW.state`, gathered: all of them on the first process, none elsewhere."""
        found: dict[str, Tensor] = {}
        for key, tensor in state.items():
            full = tensor
            shape = self.shapes.get(key.partition("/")[2])
            if shape is not None and tensor.ndim:
                strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
                spread = DTensor.from_local(tensor, self.mesh, [Shard(0)], shape=shape, stride=tuple(strides))
                full = spread.full_tensor()
            if self.first:
                found[key] = full.detach().cpu()
        return found

    def gathered(self, run: Run, loaded: Loaded, *, device: str = "cpu") -> Loaded:
        """The model with its whole network on `device`, on the first process; elsewhere it stays in shards."""
        if not self.first:
            for parameter in loaded.network.parameters():
                full(parameter)
            return loaded
        network: nn.Module = run.changed({"device": device}).load().network
        network.to(next(loaded.network.parameters()).dtype)
        kept = dict(network.named_parameters()) | dict(network.named_buffers())
        with torch.no_grad():
            for name, parameter in loaded.network.named_parameters():
                kept[name].copy_(full(parameter))
            for name, buffer in loaded.network.named_buffers():
                kept[name].copy_(buffer)
        return replace(loaded, network=network.eval())


class ShardedAdamW(MasterAdamW):
    """`MasterAdamW` on this process's rows of every tensor; only the norm needs the others.

    Args:
        rows: (name, sharded parameter, rate).
        settings: see `MasterAdamW`.
    """

    def __init__(self, rows: Sequence[tuple[str, nn.Parameter, float]], **settings: Any) -> None:
        self.sharded = [parameter for _, parameter, _ in rows]
        local = [(name, nn.Parameter(shard(p), requires_grad=False), rate) for name, p, rate in rows]
        super().__init__(local, **settings)

    def step(self, factor: float, clip: float, *, scale: float = 1.0) -> float:
        """See `MasterAdamW.step`; all processes must take it."""
        self._look()
        for (_, local, _), parameter in zip(self.rows, self.sharded, strict=True):
            local.grad = None if parameter.grad is None else shard(parameter.grad)
            parameter.grad = None
        return super().step(factor, clip, scale=scale)

    def clipped(self, clip: float) -> float:
        """See `MasterAdamW.clipped`; the norm is that of all processes' rows together."""
        total = self._squares(sharded=True)
        distributed.all_reduce(total)
        total += self._squares(sharded=False)
        norm = total.sqrt()
        torch.nn.utils.clip_grads_with_norm_(self.masters, clip, norm, foreach=True)
        return float(norm)

    def _squares(self, *, sharded: bool) -> Tensor:
        """The sum of squares of this process's gradients, of parameters in shards or of whole ones."""
        squares = [
            torch.linalg.vector_norm(master.grad, dtype=torch.float64).square()
            for master, parameter in zip(self.masters, self.sharded, strict=True)
            if master.grad is not None and isinstance(parameter, DTensor) == sharded
        ]
        zero = torch.zeros((), dtype=torch.float64, device=self.masters[0].device)
        return torch.stack([zero, *squares]).sum()

    def restore(self, kept: dict[str, Tensor]) -> None:
        self._look()
        super().restore(kept)

    def adopt(self, kept: Mapping[str, Tensor]) -> None:
        self._look()
        super().adopt(kept)

    def _look(self) -> None:
        """Where this process's rows lie: the first forward pass may move them."""
        for (_, local, _), parameter in zip(self.rows, self.sharded, strict=True):
            local.data = shard(parameter)


def units(network: nn.Module) -> list[nn.Module]:
    """Layers and blocks, in order: what is gathered, or computed again, as one."""
    return [
        layer
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] in ("layers", "blocks")
        for layer in module
        if not isinstance(layer, nn.Linear)
    ]


def refuse(network: nn.Module) -> None:
    """Raises `ConfigError` for a network whose processes would wait for each other in vain."""
    if isinstance(network, FSDPModule):
        raise ConfigError("the network is in shards already; load it anew.")
    if odd := [n for n, p in network.named_parameters() if not p.is_floating_point()]:
        raise ConfigError(f'parallel="fsdp": {odd[0]} is quantized and cannot be shared. Use parallel="ddp".')


def shard(tensor: Tensor) -> Tensor:
    """This process's rows of a sharded tensor; they share its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor. All processes must ask for it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
