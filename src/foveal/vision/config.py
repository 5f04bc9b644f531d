"""Sizes of vision towers. No torch, so that planning is quick."""

from dataclasses import dataclass

from foveal.core.errors import ConfigError, neighbours


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

    @property
    def parameters(self) -> int:
        """Numbers that the tower learns: the patch map, and per block two norms, attention and MLP with biases."""
        d, f = self.width, self.mlp_width
        block = 2 * 2 * d + (d + 1) * 3 * d + (d + 1) * d + (d + 1) * f + (f + 1) * d
        return self.patch_values * d + self.depth * block

    @property
    def hidden_results(self) -> int:
        """Arrays of the hidden width that an MLP holds at once: before and after its activation."""
        return 2

    def work_bytes(self, patches: int, item_bytes: int) -> int:
        """Peak memory of the intermediate results of a forward pass without gradients, weights and input aside.

        The widest place is a block's MLP (its input twice, the norm's output, and results of the hidden width),
        the rotation of the keys, which is computed in float32, or the input in the weights' type.
        """
        entry = item_bytes * (self.width + (self.patch_values if item_bytes != 4 else 0))
        mlp = item_bytes * (3 * self.width + self.hidden_results * self.mlp_width)
        rotation = item_bytes * 4 * self.width + 4 * 4 * self.width
        angles = 4 * 2 * self.head_dim
        return patches * (max(mlp, rotation, entry) + angles)


@dataclass(frozen=True, kw_only=True)
class WindowConfig(VisionConfig):
    """Sizes of a packed vision transformer most of whose blocks attend within windows (Qwen2.5-VL).

    Attributes:
        window_px: side of a window in pixels of the processed picture.
        full: numbers of the blocks that attend over whole frames.
    """

    window_px: int = 112
    full: tuple[int, ...] = (7, 15, 23, 31)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_cells < 1:
            raise ConfigError(
                f"a window of {self.window_px} px is smaller than a merged token ({self.merge} x {self.patch} px); "
                "make it larger."
            )

    @property
    def hidden_results(self) -> int:
        """The gate, what it multiplies, and their product."""
        return 3

    @property
    def window_cells(self) -> int:
        """Side of a window in merged tokens."""
        return self.window_px // self.merge // self.patch

    @property
    def parameters(self) -> int:
        """Numbers that the tower learns: RMSNorm has no bias, and the MLP has a gate."""
        d, f = self.width, self.mlp_width
        block = 2 * d + (d + 1) * 3 * d + (d + 1) * d + 2 * (d + 1) * f + (f + 1) * d
        return self.patch_values * d + self.depth * block


@dataclass(frozen=True, kw_only=True)
class StackConfig(VisionConfig):
    """Sizes of a packed vision transformer that also gives features of inner blocks (Qwen3-VL).

    Attributes:
        side: positions along each side of the learned table.
        inner: numbers of the blocks whose results are given, ascending.
    """

    patch: int = 16
    side: int = 48
    inner: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = list(self.inner) == sorted(set(self.inner))
        if not ascending or any(not 0 <= n < self.depth for n in self.inner):
            raise ConfigError(
                f"inner blocks {list(self.inner)} are not different blocks of {self.depth} in ascending order."
            )

    @property
    def parameters(self) -> int:
        """Numbers that the tower learns: the patch map has a bias, and there is a table of positions."""
        return super().parameters + self.width + self.side**2 * self.width

    def work_bytes(self, patches: int, item_bytes: int) -> int:
        """As in `VisionConfig`, with the inner features, which are held to the end."""
        mlp = item_bytes * (3 * self.width + 2 * self.mlp_width)
        rotation = item_bytes * 4 * self.width + 4 * 4 * self.width
        inner = item_bytes * self.width * len(self.inner)
        entry = item_bytes * (self.width + (self.patch_values if item_bytes != 4 else 0))
        return patches * (max(max(mlp, rotation) + inner, entry) + 4 * 2 * self.head_dim)


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """Sizes of a vision transformer with learned positions (ViT, CLIP, SigLIP and the towers built on them).

    Attributes:
        side: patches along each side of the position table.
        activation: "gelu", "gelu_tanh" or "quick_gelu".
        class_token: a learned token stands before the patches of every picture.
        patch_bias: the patch embedding has a bias.
        norm_before: a norm stands before the blocks (CLIP).
        norm_after: a norm stands after the blocks.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    side: int
    channels: int = 3
    eps: float = 1e-6
    activation: str = "gelu"
    class_token: bool = False
    patch_bias: bool = True
    norm_before: bool = False
    norm_after: bool = True

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"vision width {self.width} is not divisible by its {self.heads} heads.")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"vision activation {self.activation!r}; {neighbours(self.activation, ACTIVATIONS)}")

    @property
    def patch_values(self) -> int:
        """Numbers in one patch row."""
        return self.channels * self.patch**2

    @property
    def parameters(self) -> int:
        """Numbers that the tower learns."""
        d, f = self.width, self.mlp_width
        block = 2 * 2 * d + (d + 1) * 3 * d + (d + 1) * d + (d + 1) * f + (f + 1) * d
        entry = (self.patch_values + self.patch_bias) * d + (self.side**2 + 2 * self.class_token) * d
        return entry + self.depth * block + 2 * d * (self.norm_before + self.norm_after)

    def work_bytes(self, patches: int, item_bytes: int) -> int:
        """Peak memory of the intermediate results of a forward pass without gradients, weights and input aside."""
        entry = item_bytes * (self.width + (self.patch_values if item_bytes != 4 else 0))
        return patches * max(item_bytes * (3 * self.width + 3 * self.mlp_width), item_bytes * 7 * self.width, entry)


def probe_pool_parameters(width: int, mlp_width: int) -> int:
    """Numbers that a `foveal.vision.pooling.ProbePool` learns."""
    d, f = width, mlp_width
    return d + (d + 1) * 3 * d + (d + 1) * d + 2 * d + (d + 1) * f + (f + 1) * d


ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
"""Names of activations; `foveal.vision.plain` computes them."""
