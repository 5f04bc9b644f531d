"""AdamW over float32 copies of parameters that compute in a smaller type."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from foveal.core.errors import WeightsError


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019) whose weights live in float32 while the network computes in bfloat16.

    In bfloat16 alone an update below 1/256 of a weight is lost. After every step the float32 weights are
    copied, rounded, into the network.

    Args:
        rows: (name, parameter, rate) of everything that learns.
        weight_decay: on tensors of two or more dimensions.
        betas, eps: AdamW's.
        average: share of the old value in the running average of the weights after each step (Polyak); 0 for none.
    """

    def __init__(
        self,
        rows: Sequence[tuple[str, nn.Parameter, float]],
        *,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        average: float = 0.0,
    ) -> None:
        self.rows, self.average = list(rows), average
        self.masters = [p.detach().float().clone() for _, p, _ in self.rows]
        self.averages = [m.clone() for m in self.masters] if average else []
        self.steps = 0
        groups: dict[tuple[float, bool], list[Tensor]] = {}
        for (_, parameter, rate), master in zip(self.rows, self.masters, strict=True):
            groups.setdefault((rate, parameter.ndim >= 2), []).append(master)
        self.rates = [rate for rate, _ in groups]
        self.adam = torch.optim.AdamW(
            [
                {"params": params, "lr": rate, "weight_decay": weight_decay if matrix else 0.0}
                for (rate, matrix), params in groups.items()
            ],
            betas=betas,
            eps=eps,
            fused=True,
        )

    def step(self, factor: float, clip: float, *, scale: float = 1.0) -> float:
        """One update with all rates times `factor`; returns the norm of the gradient before clipping to `clip`.

        Gradients are those of the loss times `scale`. If their norm is no finite number, nothing is updated.
        """
        for (_, parameter, _), master in zip(self.rows, self.masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
            if scale != 1.0 and master.grad is not None:
                master.grad /= scale
        norm = self.clipped(clip)
        if not math.isfinite(norm):
            for master in self.masters:
                master.grad = None
            return norm
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.adam.step()
        self.steps += 1
        with torch.no_grad():
            if self.averages:
                # At the beginning the average forgets faster, or it would keep the first weights for long.
                old = min(self.average, self.steps / (self.steps + 10))
                torch._foreach_lerp_(self.averages, self.masters, 1 - old)
            for (_, parameter, _), master in zip(self.rows, self.masters, strict=True):
                parameter.copy_(master)
        return norm

    def clipped(self, clip: float) -> float:
        """The norm of all gradients together, which are then scaled to at most `clip`."""
        return float(torch.nn.utils.clip_grad_norm_(self.masters, clip, foreach=True))

    def adopt(self, kept: Mapping[str, Tensor]) -> None:
        """Begins with the weights of another optimizer's `state`, where names agree: an earlier stage's."""
        with torch.no_grad():
            for number, ((name, parameter, _), master) in enumerate(zip(self.rows, self.masters, strict=True)):
                found = learned(kept, name)
                if found is not None:
                    master.copy_(found)
                    parameter.copy_(master)
                    if self.averages:
                        self.averages[number].copy_(master)

    def exported(self) -> dict[str, Tensor]:
        """The learned weights by name, as an export takes them: averaged if there is an average."""
        weights = self.averages or self.masters
        return {name: weight for (name, _, _), weight in zip(self.rows, weights, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as named tensors."""
        kept = {f"average/{name}": a for (name, _, _), a in zip(self.rows, self.averages, strict=False)}
        for (name, _, _), master in zip(self.rows, self.masters, strict=True):
            kept[f"master/{name}"] = master
            for key, value in self.adam.state.get(master, {}).items():
                kept[f"{key}/{name}"] = value
        return kept

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Takes up what `state` returned; raises `WeightsError` when it is of other parameters."""
        wanted = {f"master/{name}" for name, _, _ in self.rows}
        found = {key for key in kept if key.startswith("master/")}
        if wanted != found:
            odd = sorted(wanted ^ found)
            raise WeightsError(f"the checkpoint is of another stage: it differs in {len(odd)} tensors, e.g. {odd[:3]}.")
        for (name, _, _), mean in zip(self.rows, self.averages, strict=False):
            with torch.no_grad():
                mean.copy_(kept[f"average/{name}"] if f"average/{name}" in kept else kept[f"master/{name}"])
        for (name, parameter, _), master in zip(self.rows, self.masters, strict=True):
            with torch.no_grad():
                master.copy_(kept[f"master/{name}"])
                parameter.copy_(master)
            self.adam.state[master] = {
                key: kept[f"{key}/{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in kept
            }


def learned(kept: Mapping[str, Tensor], name: str) -> Tensor | None:
    """What `MasterAdamW.state` holds of the weights of `name`: their average if there is one, in float32."""
    return kept.get(f"average/{name}", kept.get(f"master/{name}"))
