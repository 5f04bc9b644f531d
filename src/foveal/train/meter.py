"""What a run does with its time: tokens and pictures a second, share of the machine's arithmetic, memory."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from foveal.nn.moe import Router
from foveal.train.task import Size

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense operations a second in bfloat16 and float16, from the vendors' data sheets, by a part of the device's name."""


COUNTED = ("samples", "tokens", "learned", "images", "patches", "visual", "packs", "skipped")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a stage stands after a step.

    Attributes:
        stage: its name.
        step, steps: steps done, and of how many.
        loss, norm, rate: loss and gradient norm of this step, highest learning rate in it.
        figures: what the log last said.
    """

    stage: str
    step: int
    steps: int
    loss: float
    norm: float
    rate: float
    figures: Mapping[str, float]


class Meter:
    """Adds up steps and makes a row of them.

    Args:
        network: counted for the arithmetic of a step: a multiplication and an addition by every weight for every
            token or patch, forward, and again backward for what lies above a weight that learns, and again for what
            learns. Attention's products and normalisation are not counted, so the share is on the low side.
        peak: operations a second of one process's device; None leaves the share out.
        world: processes.
    """

    def __init__(self, network: nn.Module, *, peak: float | None, world: int = 1) -> None:
        self.peak, self.world = peak, world
        self._costs = operations(network)
        self._clear()

    def _clear(self) -> None:
        self.since, self.steps, self.loss, self.norm = time.perf_counter(), 0, 0.0, 0.0
        self.sums = dict.fromkeys(COUNTED, 0.0)

    def add(
        self, sizes: Sequence[Size], *, samples: int, learned: float, skipped: int, loss: float, norm: float
    ) -> None:
        """Counts what this process did in one step."""
        self.steps += 1
        self.loss += loss
        self.norm += norm
        for name, value in (
            ("samples", samples),
            ("learned", learned),
            ("skipped", skipped),
            ("packs", len(sizes)),
            ("tokens", sum(s.tokens for s in sizes)),
            ("visual", sum(s.visual for s in sizes)),
            ("images", sum(s.media for s in sizes)),
            ("patches", sum(s.patches for s in sizes)),
        ):
            self.sums[name] += value

    def row(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means and rates since the last row; `sums` are this meter's, added up over all processes."""
        passed = max(1e-9, time.perf_counter() - self.since)
        row = {
            "loss": self.loss / self.steps,
            "norm": self.norm / self.steps,
            **{name: round(sums[name]) for name in ("samples", "tokens", "packs")},
            "learned": sums["learned"],
            "samples_per_s": round(sums["samples"] / passed, 3),
            "tokens_per_s": round(sums["tokens"] / passed, 1),
            "images_per_s": round(sums["images"] / passed, 3),
            "padding": 0.0,  # sequences lie end to end: every position that is computed is a token
            "memory_gb": round(memory_bytes() / 1e9, 3),
        }
        if sums["skipped"]:
            row["skipped"] = round(sums["skipped"])
        if self.peak and self._costs is not None:
            done = sum(cost * sums[unit] for unit, cost in self._costs.items())
            row["mfu"] = round(done / passed / (self.peak * self.world), 4)
        self._clear()
        return row


def operations(network: nn.Module) -> dict[str, float] | None:
    """Operations of a training step for every token, visual token and patch; None for mixtures of experts, where
    they depend on the routing."""
    if any(isinstance(m, Router) for m in network.modules()):
        return None
    costs = {"tokens": 0.0, "visual": 0.0, "patches": 0.0}
    flows = False  # whether a weight that learns lies before
    for name, part in network.named_children():
        unit = {"vision": "patches", "adapter": "visual"}.get(name, "tokens")
        if name == "text":
            flows = False
        table = getattr(part, "embed", None) if getattr(part, "head", None) is not None else None
        looked_up = table.weight.numel() if isinstance(table, nn.Embedding) else 0
        size = sum(p.numel() for p in part.parameters()) - looked_up
        learns = sum(p.numel() for p in part.parameters() if p.requires_grad)
        costs[unit] += 2.0 * size + 2.0 * (size if flows or learns else 0) + 2.0 * min(size, learns)
        flows = flows or learns > 0
    return costs


def peak_operations(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that a device can do: by its name, or else as a product of two matrices measures it."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    side = 512 if device.type == "cpu" else 4096
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def memory_bytes() -> int:
    """The most memory that this process has held: of the accelerator if there is one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)
