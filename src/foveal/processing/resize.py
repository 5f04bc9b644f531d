"""How large the model sees a picture: `PatchGrid` turns any size into whole merge groups of patches.

Two implementations of this rule are published for the Qwen-VL line and they disagree on thin and on
very small pictures. A checkpoint is used with the one that its processor had; both are kept here.

    transformers    rounds both sides to whole merge groups; only when it shrinks does it hold each
                    side at one group or more.   1 x 200 -> 28 x 812 (a side of 0 makes it grow)
    qwen_vl_utils   holds each side at one group or more when it rounds, but not when it shrinks.
                    1 x 200 -> 28 x 196

In both, rounding is half to even, the area after rounding decides whether to shrink or grow, and the
area before rounding decides by how much. Shrinking rounds down and growing rounds up.
Source: Qwen2-VL (arXiv 2409.12191), section 2.1 "Naive Dynamic Resolution".
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from foveal.core.errors import ConfigError, InputError
from foveal.core.shapes import UInt8
from foveal.processing.exact import resize_exact

Resize: TypeAlias = Literal["exact", "fast"]
"""exact: Pillow's antialiased bicubic on 8 bits, the pixels of published pipelines.
fast: a JPEG that shrinks to half or less is decoded at half its size (or a quarter, or an eighth), see `jpeg`; and
where the C module was not built, torch resizes, see `fast_resize`. Both state their tolerance."""

Pixels: TypeAlias = Image.Image | UInt8[np.ndarray, "_ _ 3"]
"""An RGB picture: Pillow's, or an array where that saves a copy."""

MAX_RATIO = 200
"""Longest side over shortest side; published processors refuse more."""


class EmptyError(InputError):
    """The published rule leaves a side of 0 px."""


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """Any picture as a grid of square patches, a whole number of merge groups each way.

    Attributes:
        patch: side of a patch in pixels.
        merge: side of a merge group in patches; a group becomes one visual token.
        temporal: frames in a patch; a still picture counts as this many equal frames.
        min_px, max_px: area (width x height, not an edge) that the processed picture should lie in.
            Thin pictures may pass `max_px`, because no side gets smaller than a merge group, and very
            tight limits may be passed by the rounding: both as published.
        variant: which published rounding to follow; see the module's docstring.
    """

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    min_px: int = 56 * 56
    max_px: int = 12845056
    variant: Literal["transformers", "qwen_vl_utils"] = "transformers"

    def __post_init__(self) -> None:
        for name in ("patch", "merge", "temporal", "min_px", "max_px"):
            if getattr(self, name) < 1:
                raise ConfigError(f"PatchGrid.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.variant not in ("transformers", "qwen_vl_utils"):
            raise ConfigError(f"PatchGrid.variant is {self.variant!r}; use 'transformers' or 'qwen_vl_utils'.")
        self._check_limits(self.min_px, self.max_px, ConfigError)

    @property
    def factor(self) -> int:
        """Side of a merge group in pixels; processed sizes are multiples of it."""
        return self.patch * self.merge

    def size(
        self, width: int, height: int, *, min_px: int | float | None = None, max_px: int | float | None = None
    ) -> tuple[int, int]:
        """The (width, height) in pixels at which the model sees a picture of `width` x `height`.

        `min_px` and `max_px` replace the grid's own limits. Raises `InputError` for an empty picture, for
        a side ratio above 200, and for limits that cannot be met.
        """
        low = self.min_px if min_px is None else min_px
        high = self.max_px if max_px is None else max_px
        self._check_limits(low, high, InputError)
        if width < 1 or height < 1:
            raise InputError(f"the picture is {width} x {height} px; both sides must be at least 1 px.")
        if max(width, height) / min(width, height) > MAX_RATIO:
            raise InputError(
                f"the picture is {width} x {height} px, a side ratio above {MAX_RATIO}; crop it or cut it in pieces."
            )
        return self._resized(width, height, low, high)

    def _resized(self, width: int, height: int, low: int | float, high: int | float) -> tuple[int, int]:
        factor = self.factor
        held = self.variant == "qwen_vl_utils"
        least = factor if held else 0
        rounded = [max(least, round(side / factor) * factor) for side in (width, height)]
        area = rounded[0] * rounded[1]
        if area > high:
            shrink = math.sqrt(height * width / high)
            least = 0 if held else factor
            sides = [max(least, math.floor(side / shrink / factor) * factor) for side in (width, height)]
        elif area < low:
            grow = math.sqrt(low / (height * width))
            sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
        else:
            sides = rounded
        if 0 in sides:
            raise EmptyError(
                f"max_px={high:.0f} leaves no pixel of a picture of {width} x {height} px under the rule of "
                f"qwen_vl_utils; raise max_px, or use PatchGrid(variant='transformers')."
            )
        return sides[0], sides[1]

    def _check_limits(self, low: int | float, high: int | float, kind: type[ConfigError] | type[InputError]) -> None:
        group = self.factor**2
        if not (math.isfinite(low) and math.isfinite(high)) or low < 1:
            raise kind(f"min_px={low} and max_px={high}: pixel limits are areas, finite and at least 1.")
        if low > high:
            raise kind(f"min_px={low} is above max_px={high}; lower min_px or raise max_px.")
        if high < group:
            raise kind(f"max_px={high} is less than one visual token ({self.factor} x {self.factor} = {group} px).")

    def grid(self, width: int, height: int, frames: int = 1) -> tuple[int, int, int]:
        """Patches in time, height and width of a medium of processed size `width` x `height`."""
        if width < 1 or height < 1 or width % self.factor or height % self.factor:
            raise InputError(
                f"{width} x {height} px is not a processed size: sides must be multiples of {self.factor}; "
                "take them from PatchGrid.size()."
            )
        if frames < 1:
            raise InputError(f"{frames} frames; a medium has at least one.")
        return -(-frames // self.temporal), height // self.patch, width // self.patch

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Visual tokens of a medium with `grid` patches: one for each merge group."""
        return grid[0] * grid[1] * grid[2] // self.merge**2

    def max_px_for(self, tokens: int, width: int | None = None, height: int | None = None) -> int:
        """The inverse: the largest `max_px` at which a picture takes at most `tokens` visual tokens.

        Without a size the answer suits every picture but the thin ones, which may pass `max_px`.
        With `width` and `height` it is exact for that picture, and at most the grid's own `max_px`.
        Raises `InputError` when no limit is low enough.
        """
        if tokens < 1:
            raise InputError(f"{tokens} tokens; a picture takes at least 1.")
        if width is None or height is None:
            if width is not height:
                raise InputError(f"width={width} and height={height}; give both or neither.")
            limit = (tokens + 1) * self.factor**2 - 1
            if limit < self.min_px:
                raise InputError(f"{tokens} visual tokens are fewer than min_px={self.min_px} allows; lower min_px.")
            return limit
        low, high = max(self.factor**2, self.min_px), self.max_px
        if self._tokens_at(width, height, high) <= tokens:
            return high
        while high - low > 1:  # tokens never fall when max_px rises
            middle = (low + high) // 2
            if self._tokens_at(width, height, middle) <= tokens:
                low = middle
            else:
                high = middle
        if not 1 <= self._tokens_at(width, height, low) <= tokens:
            raise InputError(
                f"a picture of {width} x {height} px does not fit {tokens} visual tokens at any max_px from "
                f"min_px={self.min_px} up; allow more tokens, lower min_px, or crop the picture."
            )
        return low

    def _tokens_at(self, width: int, height: int, max_px: int) -> int:
        """Visual tokens under another limit; 0 where qwen_vl_utils leaves no picture."""
        try:
            size = self.size(width, height, max_px=max_px)
        except EmptyError:
            return 0
        return self.tokens(self.grid(*size))


def resized(picture: Pixels, size: tuple[int, int], how: Resize = "exact") -> Pixels:
    """`picture` (RGB) at `size` (width, height); itself where it has that size already."""
    if how not in ("exact", "fast"):
        raise InputError(f"resize={how!r}; use 'exact' or 'fast'.")
    if size_of(picture) == size:
        return picture
    pixels = resize_exact(picture, size)
    if pixels is not None:
        return pixels
    if how == "fast":
        from foveal.processing.fast_resize import resize_fast

        return resize_fast(np.array(picture), size)
    return as_image(picture).resize(size, Image.Resampling.BICUBIC)


def size_of(picture: Pixels) -> tuple[int, int]:
    """Width and height."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def as_image(picture: Pixels) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
