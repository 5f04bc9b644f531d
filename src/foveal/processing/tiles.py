"""Pictures as a global view and tiles (DeepSeek-VL2, section 2.1, "dynamic tiling").

A picture is fitted, without stretching, onto the canvas of best shape among the candidates, which is cut into square
tiles of one size; the whole picture at the size of one tile goes before them. In conversations of more than two
pictures each one has a single tile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from foveal.core.box import ImageView
from foveal.core.config import read_json
from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.core.packed import Medium
from foveal.processing.intake import Knobs, Opened, VideoShape
from foveal.processing.media import describe, open_image
from foveal.processing.messages import ImagePart, VideoPart
from foveal.processing.patches import Normalize
from foveal.processing.square import plain_rows

Size = tuple[int, int]

FEW = 2
"""Up to so many pictures in a conversation are tiled."""

_SETTINGS = {
    "add_special_token": False,
    "image_token": "<image>",
    "ignore_id": -100,
    "normalize": True,
    "sft_format": "deepseek",
}
"""What processor_config.json may state beside sizes and colours, and the one value of each that is computed."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The `Vision` of DeepSeek-VL2.

    Attributes:
        candidates: (width, height) of the canvases in pixels; the first is one tile. Their order breaks ties.
        patch: side of a patch in pixels; what is beyond the last whole patch of a view is not seen.
        join: patches along the side of a token.
        normalize: colours; what a picture does not fill is painted in the mean.
    """

    candidates: tuple[Size, ...]
    patch: int
    join: int
    normalize: Normalize

    def __post_init__(self) -> None:
        side, other = self.candidates[0] if self.candidates else (0, 1)
        if side != other or any(w % side or h % side or min(w, h) < 1 for w, h in self.candidates):
            raise ConfigError(
                f"candidate resolutions {list(self.candidates)[:3]} ...: the first has to be one square tile and the "
                "others whole numbers of tiles."
            )
        if side < self.patch:
            raise ConfigError(f"a tile of {side} px holds no patch of {self.patch} px.")

    @property
    def tile_px(self) -> int:
        """Side of a tile, and of the global view."""
        return self.candidates[0][0]

    @property
    def side(self) -> int:
        """Patches along the side of a view."""
        return self.tile_px // self.patch

    @property
    def patch_values(self) -> int:
        return 3 * self.patch**2

    def pixel_range(self, *, images: bool, videos: bool) -> tuple[int, int] | None:
        """`max_pixels` bounds the area of the canvas: from one tile to the largest candidate."""
        areas = [w * h for w, h in self.candidates]
        return areas[0], max(areas)

    def read(self, folder: Path) -> "Tiles":
        """With what `processor_config.json` states. Raises `ConfigError` for what is not computed."""
        path = folder / "processor_config.json"
        if not path.is_file():
            return self
        found = read_json(path)
        for key, wanted in _SETTINGS.items():
            if found.get(key, wanted) != wanted:
                raise ConfigError(f"{path}: {key} is {found[key]!r}; this family computes only {wanted!r}.")
        try:
            read = replace(
                self,
                candidates=pairs(found.get("candidate_resolutions", self.candidates)),
                patch=int(found.get("patch_size", self.patch)),
                join=int(found.get("downsample_ratio", self.join)),
                normalize=Normalize(
                    mean=_three(found.get("image_mean", self.normalize.mean)),
                    std=_three(found.get("image_std", self.normalize.std)),
                ),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None
        mine, own = (self.tile_px, self.patch, self.join), (read.tile_px, read.patch, read.join)
        if mine != own:
            raise ConfigError(
                f"{path}: tile, patch and downsample_ratio are {own}, but config.json says {mine}; take both from "
                "one model."
            )
        return read

    def files(self) -> dict[str, dict[str, Any]]:
        return {
            "processor_config.json": {
                "candidate_resolutions": [list(c) for c in self.candidates],
                "downsample_ratio": self.join,
                "image_mean": list(self.normalize.mean),
                "image_std": list(self.normalize.std),
                "mask_prompt": False,
                "pad_token": "<｜▁pad▁｜>",
                "patch_size": self.patch,
                "processor_class": "DeepseekVLV2Processor",
                **_SETTINGS,
            }
        }

    def open(
        self, part: ImagePart | VideoPart, *, budget: MediaBudget, knobs: Knobs, count: int, patches: bool = True
    ) -> Opened:
        """See `Vision.open`. Raises `InputError` for videos and for settings that have no meaning here."""
        name = describe(part.source)
        if isinstance(part, VideoPart):
            raise InputError(f"{name} is a video, but this family sees images only; pass single frames.")
        if part.resized is not None:
            raise InputError(
                f"{name}: this family fits pictures onto tiles; leave resized_width and resized_height out."
            )
        low, high = knobs.limits(part)
        _refuse(knobs, low)
        picture = open_image(part.source, budget=budget)
        canvas = self.canvas(picture.size, most_px=high, count=count)
        rows = np.zeros((0, self.patch_values), np.float32)
        if patches:
            views = [np.asarray(view) for view in self.views(picture, canvas)]
            rows = np.concatenate([plain_rows(view, self.patch, self.normalize) for view in views])
        across, down = self.tiles(canvas)
        extra = {"tiles": np.array([[across, down]], dtype=np.int64)}
        return Opened(medium=self._medium(picture.size, canvas, name), patches=rows, extra=extra)

    def canvas(self, size: Size, *, most_px: int | None, count: int) -> Size:
        """The canvas of a picture of `size`, one of `count`."""
        one = self.candidates[0]
        if most_px is not None and most_px < one[0] * one[1]:
            raise InputError(f"max_pixels={most_px} is less than one tile of {one[0]} x {one[1]} px; raise it.")
        if count > FEW:
            return one
        return best_canvas(size, [c for c in self.candidates if most_px is None or c[0] * c[1] <= most_px])

    def tiles(self, canvas: Size) -> tuple[int, int]:
        """Tiles across and down."""
        return canvas[0] // self.tile_px, canvas[1] // self.tile_px

    def views(self, picture: Image.Image, canvas: Size) -> list[Image.Image]:
        """The global view, then the tiles row by row."""
        side = self.tile_px
        # Rounded down, as published: 127 for a mean of one half.
        red, green, blue = (int(m * 255) for m in self.normalize.mean)
        whole, local = (
            ImageOps.pad(picture, size, method=Image.Resampling.BICUBIC, color=(red, green, blue))
            for size in ((side, side), canvas)
        )
        corners = [(x, y) for y in range(0, canvas[1], side) for x in range(0, canvas[0], side)]
        return [whole, *(local.crop((x, y, x + side, y + side)) for x, y in corners)]

    def measure_image(self, width: int, height: int, *, knobs: Knobs, count: int) -> Medium:
        _refuse(knobs, knobs.min_pixels)
        canvas = self.canvas((width, height), most_px=knobs.max_pixels, count=count)
        return self._medium((width, height), canvas, f"{width} x {height} px")

    def measure_video(self, video: VideoShape, *, knobs: Knobs, count: int) -> Medium:
        raise InputError(f"a video of {video.seconds:g} s, but this family sees images only; pass single frames.")

    def cells(self, medium: Medium) -> tuple[int, int, int]:
        return 1, 1, medium.tokens

    def pixels_for(self, tokens: int) -> int | None:
        """The largest area of a canvas with which no picture takes more; None when one tile takes more already."""
        best = None
        for area in sorted({w * h for w, h in self.candidates}):
            if max(self.tokens(c) for c in self.candidates if c[0] * c[1] <= area) <= tokens:
                best = area
        return best

    def tokens(self, canvas: Size) -> int:
        """Visual tokens: both parts with a newline after each row, and the separator between them."""
        side = math.ceil(self.side / self.join)
        across, down = self.tiles(canvas)
        return side * (side + 1) + 1 + down * side * (across * side + 1)

    def _medium(self, original: Size, canvas: Size, source: str) -> Medium:
        across, down = self.tiles(canvas)
        grid = (1 + across * down, self.side, self.side)
        view = ImageView(original=original, processed=fitted(original, canvas))
        return Medium(
            kind="image", sequence=0, view=view, grid=grid, tokens=self.tokens(canvas), source=source
        )  # fmt: skip


def best_canvas(size: Size, candidates: Sequence[Size]) -> Size:
    """The candidate on which most of a picture's own pixels fit; of several, the one that wastes least; else the first.

    A picture never counts for more pixels than it has, so small pictures get small canvases.
    """
    width, height = size

    def merit(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - canvas[0] * canvas[1]

    return max(candidates, key=merit)


def fitted(size: Size, canvas: Size) -> Size:
    """The size that a picture of `size` takes on a canvas without stretching: what the model sees of it."""
    width, height = size
    if width * canvas[1] == height * canvas[0]:
        return canvas
    if width * canvas[1] > height * canvas[0]:
        return canvas[0], max(1, round(height / width * canvas[0]))
    return max(1, round(width / height * canvas[1])), canvas[1]


def pairs(values: Any) -> tuple[Size, ...]:
    """A published list of (width, height); raises `ValueError` for anything else."""
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"candidate_resolutions is {values!r}; a list of [width, height] is expected.")
    found = []
    for value in values:
        whole = isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int and v > 0 for v in value)
        if not whole:
            raise ValueError(f"candidate_resolutions holds {value!r}; [width, height] in pixels is expected.")
        found.append((value[0], value[1]))
    return tuple(found)


def _three(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{values!r} is no colour; three numbers are expected.")
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _refuse(knobs: Knobs, low: int | None) -> None:
    why = "this family sees pictures on tiles, no larger than they are"
    knobs.refuse(("fps", "nframes", "max_frames"), "this family sees images only")
    if low is not None:
        raise InputError(f"min_pixels={low}: {why}; leave it out.")
