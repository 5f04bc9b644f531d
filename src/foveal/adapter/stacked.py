"""Mergers of several depths of a tower (Qwen3-VL's DeepStack; Meng et al. 2024)."""

from collections.abc import Sequence

from torch import Tensor, nn

from foveal.adapter.merger import Merger
from foveal.core.shapes import Float


class StackedMerger(nn.Module):
    """One merger for the tower's result, and one for each of its inner features, which are joined before the norm."""

    def __init__(self, vision_width: int, width: int, merge: int, inner: int) -> None:
        super().__init__()
        self.last = Merger(vision_width, width, merge)
        self.inner = nn.ModuleList(Merger(vision_width, width, merge, join_first=True) for _ in range(inner))

    def forward(
        self, x: Float[Tensor, "P C"], inner: Sequence[Float[Tensor, "P C"]]
    ) -> tuple[Float[Tensor, "M D"], list[Float[Tensor, "M D"]]]:
        """Visual tokens, and what is added to them behind the first layers of the decoder."""
        return self.last(x), [merge(features) for merge, features in zip(self.inner, inner, strict=True)]
