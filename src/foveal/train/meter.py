"""What a run does with its time: tokens and pictures a second, share of the machine's arithmetic, memory."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.language.decoder import Decoder
from foveal.nn.moe import Router
from foveal.train.task import Size

PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12, "H100": 989e12, "H200": 989e12,
    "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12,
}  # fmt: skip
"""Dense operations a second in bfloat16 and float16 with sums in float32, from the vendors' data sheets, by a part of
the device's name; the first that fits counts."""


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
        network: counted for the arithmetic of a step, see `operations`.
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
    """Operations of a training step for every token, learned token, visual token and patch.

    A multiplication and an addition by every number of a matrix: forward; backward to its input where something
    before it learns; and for its own gradient where it learns itself. The head counts for learned tokens only, since
    it is computed for no others. Not counted are attention's products, norms, tables that are looked up, and what is
    computed again to save memory, so the share of the peak is on the low side.

    None for mixtures of experts, where it depends on the routing.
    """
    if any(isinstance(m, Router) for m in network.modules()):
        return None
    costs = dict.fromkeys(("tokens", "learned", "visual", "patches"), 0.0)
    flows = False  # whether something that learns lies before
    for name, part in network.named_children():
        unit = {"vision": "patches", "adapter": "visual"}.get(name, "tokens")
        if name == "text":
            flows = False
        tables = {p for m in part.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        tables |= {p for n, p in part.named_parameters() if n.rpartition(".")[2] == "positions"}
        head = _head(part)
        for parameter in part.parameters():
            if parameter.ndim > 1 and parameter is not head and parameter not in tables:
                costs[unit] += _cost(parameter, flows)
            flows = flows or parameter.requires_grad
        if head is not None:
            costs["learned"] += _cost(head, flows)
    return costs


def _head(part: nn.Module) -> Tensor | None:
    """The matrix that gives a decoder's scores, which may be the table of its tokens."""
    if not isinstance(part, Decoder):
        return None
    return part.embed.weight if part.head is None else part.head.weight


def _cost(matrix: Tensor, flows: bool) -> float:
    return 2.0 * matrix.numel() * (1 + flows + matrix.requires_grad)


def peak_operations(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that a device can do: by its name, or else the best of products of growing matrices."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    best, side, passed = 0.0, 256, 0.0
    while side <= 8192 and passed < 0.05:
        side *= 2
        a = torch.rand(side, side, device=device, dtype=dtype)
        for _ in range(3):
            begin = time.perf_counter()
            (a @ a)[0, 0].item()
            passed = time.perf_counter() - begin
            best = max(best, 2 * side**3 / passed)
    return best


def memory_bytes() -> int:
    """The most memory that this process has held: of the accelerator if there is one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)
