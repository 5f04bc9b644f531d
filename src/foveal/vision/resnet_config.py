"""Sizes of CLIP's residual networks. No torch."""

from dataclasses import dataclass

from foveal.core.errors import ConfigError

EXPANSION = 4
"""A block's result is this many times as wide as its middle (He et al. 2016, figure 5)."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of a ModifiedResNet (CLIP, section 2.4).

    Attributes:
        width: channels after the stem.
        stages: blocks in each of the four stages.
        heads: heads of the attention pooling.
        side_px: side of the pictures; the position table of the pooling fits this size only.
    """

    width: int
    stages: tuple[int, int, int, int]
    heads: int
    side_px: int
    channels: int = 3
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if len(self.stages) != 4 or min(self.stages) < 1:
            raise ConfigError(f"stages are {list(self.stages)}; expected four numbers of blocks.")
        if self.width % 2 or self.features % self.heads:
            raise ConfigError(
                f"a residual network of width {self.width} has {self.features} features at its end; the width must "
                f"be even, and the features divisible by its {self.heads} heads."
            )
        if self.side_px % 32:
            raise ConfigError(
                f"pictures of {self.side_px} px; a residual network halves five times, so 32 must divide it."
            )

    @property
    def features(self) -> int:
        """Channels after the last stage."""
        return self.width * 2**3 * EXPANSION

    @property
    def side(self) -> int:
        """Places along each side after the last stage."""
        return self.side_px // 32

    @property
    def patch_values(self) -> int:
        """Numbers in one picture."""
        return self.channels * self.side_px**2

    def parameters(self, embed: int) -> int:
        """Numbers that the tower learns, with the pooling's map to `embed`; statistics of norms are not learned."""
        w, half = self.width, self.width // 2
        total = 9 * (self.channels * half + half * half + half * w) + 2 * (half + half + w)
        wide = w
        for number, blocks in enumerate(self.stages):
            middle = w * 2**number
            out = middle * EXPANSION
            for block in range(blocks):
                total += wide * middle + 9 * middle**2 + middle * out + 2 * (2 * middle + out)
                if block == 0:
                    total += wide * out + 2 * out
                wide = out
        f = self.features
        return total + (self.side**2 + 1) * f + 3 * (f + 1) * f + (f + 1) * embed
