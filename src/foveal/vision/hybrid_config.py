"""Sizes of DeepSeek-VL's towers. No torch, so that planning is quick."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from foveal.core.errors import ConfigError
from foveal.processing.patches import Normalize
from foveal.vision.config import PlainConfig

MASK_TOKENS = 512
"""Queries of a picture for which the position scores of a global block are held at a time."""


@dataclass(frozen=True, kw_only=True)
class SamConfig(PlainConfig):
    """Sizes of SAM's image encoder (Kirillov et al. 2023) with what DeepSeek-VL puts behind it.

    Attributes:
        window: side of the windows of local blocks, in patches.
        full: numbers of the blocks that attend over the whole picture.
        neck: channels of the necks.
        down: channels after the first and the second stride-2 convolution.
        resized: side to which a neck's result is brought before these; a quarter of it is the result's side.
    """

    window: int = 14
    full: tuple[int, ...] = (2, 5, 8, 11)
    neck: int = 256
    down: tuple[int, int] = (512, 1024)
    resized: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = list(self.full) == sorted(set(self.full))
        if not self.full or not ascending or not all(0 <= i < self.depth for i in self.full):
            raise ConfigError(
                f"SAM has global blocks {list(self.full)}; expected some of 0..{self.depth - 1}, in ascending order."
            )
        if self.window < 1 or self.resized < 4 or self.resized % 4:
            raise ConfigError(
                f"SAM has window {self.window} and resized {self.resized}; expected a window of at least 1 and a "
                "multiple of 4."
            )

    @property
    def out_side(self) -> int:
        """Visual tokens along each side of a picture."""
        return self.resized // 4

    @property
    def parameters(self) -> int:
        """Numbers that the tower learns: a plain tower without its last norm, and what `SamTower` adds."""
        d, head, spans = self.width, self.width // self.heads, 0
        for block in range(self.depth):
            spans += 2 * (2 * (self.side if block in self.full else self.window) - 1) * head
        neck = d * self.neck + 9 * self.neck**2 + 4 * self.neck
        down = 9 * (self.neck * self.down[0] + self.down[0] * self.down[1])
        plain = super().parameters - 2 * d * (self.norm_before + self.norm_after)
        return plain + spans + 2 * neck + down + 1

    def work_bytes(self, patches: int, item_bytes: int) -> int:
        """Peak memory of the intermediate results; pictures are computed one after the other.

        The widest place of a picture is a global block: its input, queries, keys and values, the result, and the
        position scores of some queries, which are held twice while they are put together; or a block's MLP, or the
        map of patches in the weights' type.
        """
        one, held = self.side**2, min(self.side**2, MASK_TOKENS)
        attention = 9 * one * self.width + 2 * self.heads * held * one
        mlp = one * (3 * self.width + 3 * self.mlp_width)
        results = self.down[1] * self.out_side**2 * -(-patches // one)
        entry = one * self.patch_values if item_bytes != 4 else 0
        return item_bytes * (max(attention, mlp, entry) + results)


@dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """Sizes of SigLIP alone (`high` is None) or beside SAM, and the tensors of a release that no result needs.

    Attributes:
        low: the SigLIP tower, which sees the small picture.
        high: the SAM tower, which sees the large one.
        low_colours, high_colours: what a tower itself normalises 0..1 pixels with; None where processing has done so.
        unused: shapes of tensors that a release carries and no result depends on, by our name.
    """

    low: PlainConfig
    high: SamConfig | None = None
    low_colours: Normalize | None = None
    high_colours: Normalize | None = None
    unused: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if self.high is not None and self.high.out_side != self.low.side:
            raise ConfigError(
                f"SAM gives {self.high.out_side} x {self.high.out_side} tokens, SigLIP {self.low.side} x "
                f"{self.low.side}; the adapter needs as many from both."
            )

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture."""
        return self.low.side**2

    @property
    def entry(self) -> PlainConfig:
        """The tower that sees `Packed.patches`: SAM where there is one."""
        return self.high or self.low

    @property
    def patch_values(self) -> int:
        """Numbers in one row of `Packed.patches`."""
        return self.entry.patch_values

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return dict(self.unused)

    @property
    def parameters(self) -> int:
        """Numbers that the towers hold."""
        kept = sum(prod(shape) for _, shape in self.unused)
        return self.low.parameters + (self.high.parameters if self.high else 0) + kept

    def work_bytes(self, patches: int, item_bytes: int) -> int:
        """Peak memory of the intermediate results of a forward pass without gradients, weights and input aside."""

        def tower(part: PlainConfig, colours: Normalize | None, count: int) -> int:
            normalized = 0 if colours is None else 4 * count * part.patch_values  # pixels stay float32
            return max(2 * normalized, normalized + part.work_bytes(count, item_bytes))

        if self.high is None:
            return tower(self.low, self.low_colours, patches)
        seen = -(-patches // self.high.side**2) * self.low.side**2
        fine = item_bytes * seen * self.high.down[1]
        return max(tower(self.high, self.high_colours, patches), fine + tower(self.low, self.low_colours, seen))


def latent_pool(width: int, mlp_width: int) -> dict[str, tuple[int, ...]]:
    """The attention pooling that the original code builds behind SigLIP and never asks (timm's `attn_pool`)."""
    d, f = width, mlp_width
    return {
        "latent": (1, 1, d), "q_weight": (d, d), "q_bias": (d,), "kv_weight": (2 * d, d), "kv_bias": (2 * d,),
        "proj_weight": (d, d), "proj_bias": (d,), "norm_weight": (d,), "norm_bias": (d,),
        "fc1_weight": (f, d), "fc1_bias": (f,), "fc2_weight": (d, f), "fc2_bias": (d,),
    }  # fmt: skip


def probe_pool(width: int, mlp_width: int) -> dict[str, tuple[int, ...]]:
    """The same as transformers builds it (`vision_use_head`), query, key and value in one matrix."""
    d = width
    shared = {name: shape for name, shape in latent_pool(width, mlp_width).items() if name[0] not in "qk"}
    return {**shared, "in_weight": (3 * d, d), "in_bias": (3 * d,)}
