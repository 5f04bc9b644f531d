"""Sizes of vision towers. No torch, so that planning is quick."""

from dataclasses import dataclass

from foveal.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of a packed vision transformer.

    `patch`, `merge` and `temporal` count pixels, patches a side of a merged token, and frames of a patch.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int = 14
    merge: int = 2
    temporal: int = 2
    channels: int = 3
    eps: float = 1e-6
    theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ConfigError(
                f"vision width {self.width} over {self.heads} heads gives no head size divisible by 4, "
                "which 2-D rotary positions need; change width or heads."
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers in one patch row."""
        return self.channels * self.temporal * self.patch**2
