"""What a loss returns that is a mean over tokens or rows of many batches."""

from typing import NamedTuple

from torch import Tensor


class Weighted(NamedTuple):
    """A weighted sum and the sum of its weights.

    The loss of a step is (sum of all sums) / (sum of all weights) over its packs and processes: a mean of the packs'
    means would give a token of a short pack more weight than one of a long pack.
    """

    sum: Tensor
    weight: float

    @property
    def mean(self) -> Tensor:
        """The sum over the weight; 0 where nothing has weight."""
        return self.sum / (self.weight or 1.0)
