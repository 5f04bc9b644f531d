"""Pictures at one fixed size: stretched to a square, or shrunk and cut to one (ViT, CLIP, SigLIP, Qwen-VL)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from foveal.core.box import ImageView
from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.core.packed import Medium
from foveal.core.shapes import Float32
from foveal.processing.image import Alpha
from foveal.processing.intake import Knobs, Opened, VideoShape
from foveal.processing.media import describe, open_image
from foveal.processing.messages import ImagePart, VideoPart
from foveal.processing.patches import Normalize

Fit: TypeAlias = Literal["stretch", "crop"]
"""stretch: both sides to the square's, whatever the ratio. crop: the shorter side to the square's, then its middle."""

FILTERS = {2: Image.Resampling.BILINEAR, 3: Image.Resampling.BICUBIC, 1: Image.Resampling.LANCZOS}
"""Pillow's filters by the number that published files state as `resample`."""

FIXED = "this family sees every picture at one size"


@dataclass(frozen=True, kw_only=True)
class Square:
    """The `Vision` of families that see squares of `side_px`.

    `tokens` is what a picture takes in a text, `None` its patches; `alpha` says what becomes of transparency.
    Nothing of it is read from a folder: a family whose folders state sizes overrides `read` and `files`.
    """

    side_px: int
    patch: int
    normalize: Normalize
    fit: Fit = "stretch"
    resample: int = 3
    tokens: int | None = None
    alpha: Alpha = "white"

    def __post_init__(self) -> None:
        if self.resample not in FILTERS:
            raise ConfigError(f"resample is {self.resample}; expected one of {sorted(FILTERS)} (Pillow's filters).")

    @property
    def patch_values(self) -> int:
        return 3 * self.patch**2

    @property
    def side(self) -> int:
        """Patches along a side; pixels beyond the last whole patch are not seen."""
        return self.side_px // self.patch

    def pixel_range(self, *, images: bool, videos: bool) -> tuple[int, int] | None:
        return None

    def read(self, folder: Path) -> "Square":
        return self

    def files(self) -> dict[str, dict[str, Any]]:
        return {}

    def fitted(self, picture: Image.Image) -> Image.Image:
        """The square that the model sees of an RGB picture."""
        side, how = self.side_px, FILTERS[self.resample]
        if self.fit == "stretch":
            return picture if picture.size == (side, side) else picture.resize((side, side), how)
        width, height = picture.size
        short, long = min(width, height), max(width, height)
        sides = side, int(side * long / short)  # rounded down, as published processors do
        size = sides if width <= height else sides[::-1]
        if size != picture.size:
            picture = picture.resize(size, how)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return picture.crop((left, top, left + side, top + side))

    def open(
        self, part: ImagePart | VideoPart, *, budget: MediaBudget, knobs: Knobs, count: int, patches: bool = True
    ) -> Opened:
        """See `Vision.open`. Raises `InputError` for videos and for settings of size, which have no effect here."""
        self._refuse(part, knobs)
        picture = open_image(part.source, budget=budget, alpha=self.alpha)
        medium = self._medium(picture.size, describe(part.source))
        rows = self.rows(self.fitted(picture)) if patches else np.zeros((0, self.patch_values), np.float32)
        return Opened(medium=medium, patches=rows)

    def rows(self, picture: Image.Image) -> Float32[np.ndarray, "P C"]:
        """Patches of a fitted square, row by row, each flattened in the order (channel, row, column)."""
        return plain_rows(np.asarray(picture), self.patch, self.normalize)

    def measure_image(self, width: int, height: int, *, knobs: Knobs, count: int) -> Medium:
        knobs.refuse(("min_pixels", "max_pixels"), FIXED)
        return self._medium((width, height), f"{width} x {height} px")

    def measure_video(self, video: VideoShape, *, knobs: Knobs, count: int) -> Medium:
        raise InputError(f"a video of {video.seconds:g} s, but this family sees images only; pass single frames.")

    def cells(self, medium: Medium) -> tuple[int, int, int]:
        return 1, 1, medium.tokens

    def pixels_for(self, tokens: int) -> int | None:
        return None

    def sized(self, side_px: int) -> "Square":
        """The same for another size of square."""
        return replace(self, side_px=side_px)

    def _refuse(self, part: ImagePart | VideoPart, knobs: Knobs) -> None:
        name = describe(part.source)
        if isinstance(part, VideoPart):
            raise InputError(f"{name} is a video, but this family sees images only; pass single frames.")
        knobs.refuse(("min_pixels", "max_pixels", "fps", "nframes", "max_frames"), FIXED)
        for key in ("min_pixels", "max_pixels", "resized"):
            if getattr(part, key) is not None:
                raise InputError(f"{name}: {key}={getattr(part, key)}: {FIXED}; leave it out.")

    def _medium(self, original: tuple[int, int], source: str) -> Medium:
        view = ImageView(original=original, processed=(self.side_px, self.side_px))
        tokens = self.side**2 if self.tokens is None else self.tokens
        return Medium(kind="image", sequence=0, view=view, grid=(1, self.side, self.side), tokens=tokens, source=source)


def plain_rows(pixels: np.ndarray, patch: int, normalize: Normalize) -> Float32[np.ndarray, "P C"]:
    """Patches of an RGB picture [H, W, 3] row by row; what is beyond the last whole patch is left out."""
    high, wide = pixels.shape[0] // patch, pixels.shape[1] // patch
    mean, std = np.array(normalize.mean, np.float32), np.array(normalize.std, np.float32)
    values = (pixels[: high * patch, : wide * patch].astype(np.float32) / np.float32(255) - mean) / std
    cut = values.reshape(high, patch, wide, patch, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cut).reshape(high * wide, 3 * patch * patch)
