"""Scaling of the loss for float16, whose smallest gradients would be lost (Micikevicius et al. 2018, section 3.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor

FIRST = 2.0**16
GROW_AFTER = 2000
"""Steps without overflow after which the scale doubles."""


class LossScale:
    """What the loss is multiplied with: halved when gradients overflow, doubled after `GROW_AFTER` steps without.

    Without `on` it stays 1.
    """

    def __init__(self, *, on: bool) -> None:
        self.on, self.value, self.good = on, FIRST if on else 1.0, 0

    def judge(self, *, finite: bool) -> bool:
        """Learns whether a step's gradients were finite; False where a smaller scale cannot help."""
        if not self.on:
            return finite
        if finite:
            self.good += 1
            if self.good == GROW_AFTER:
                self.value, self.good = self.value * 2, 0
            return True
        self.value, self.good = self.value / 2, 0
        return self.value >= 1.0

    def state(self) -> dict[str, Tensor]:
        """As named tensors, for checkpoints."""
        return {"scale": torch.tensor([self.value, self.good], dtype=torch.float64)} if self.on else {}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        if self.on and "scale" in kept:
            self.value, self.good = float(kept["scale"][0]), int(kept["scale"][1])
