"""Pictures and video frames to the rows of values that a patch embedding takes.

A row is one patch, flattened in the order (channel, time, row, column): C = 3 x temporal x patch x patch.
Rows come in the order (time, group row, group column, row in group, column in group), so that the
patches of a merge group are neighbours. A still picture stands as `temporal` equal frames.
Source: Qwen2-VL (arXiv 2409.12191), section 2.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from foveal.core.box import ImageView
from foveal.core.errors import ConfigError, InputError
from foveal.core.shapes import Float32, UInt8
from foveal.processing.resize import PatchGrid, resize_exact

Resize: TypeAlias = Literal["exact", "fast"]
"""exact: Pillow's pixels, as published. fast: torch's antialiased resize, see `fast_resize` for its tolerance."""

Planes: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Red, green and blue of one picture, each uint8 [H, W] and contiguous."""


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Mean and standard deviation of each channel, for values scaled to 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ConfigError(f"Normalize has mean={self.mean}, std={self.std}; expected 3 each and std above 0.")


def image_patches(
    picture: Image.Image,
    *,
    grid: PatchGrid,
    normalize: Normalize,
    min_px: int | None = None,
    max_px: int | None = None,
    resize: Resize = "exact",
) -> tuple[Float32[np.ndarray, "P C"], ImageView, tuple[int, int, int]]:
    """Patch rows of a still picture (RGB, from `media.open_image`), its two sizes, and its grid (t, h, w).

    `min_px` and `max_px` replace the grid's limits. Raises `InputError` as `PatchGrid.size` does.
    """
    size = grid.size(*picture.size, min_px=min_px, max_px=max_px)
    frame = _planes(_rgb_only(picture), size, resize)
    shape = grid.grid(*size)
    patches = _rows([frame] * grid.temporal, shape, grid, normalize)
    return patches, ImageView(original=picture.size, processed=size), shape


def video_patches(
    frames: Sequence[Image.Image] | UInt8[np.ndarray, "F H W 3"],
    *,
    grid: PatchGrid,
    normalize: Normalize,
    size: tuple[int, int] | None = None,
    original: tuple[int, int] | None = None,
    resize: Resize = "exact",
) -> tuple[Float32[np.ndarray, "P C"], ImageView, tuple[int, int, int]]:
    """Patch rows of a video's frames, its two sizes, and its grid (t, h, w).

    `size` is the processed (width, height), from `video.frame_size`; None where the frames have it
    already, as those of `video.open_video(..., grid=...)` do. `original` is the size that the user knows
    (`Clip.source_size`); None for that of the frames. When the last patch lacks frames, the last frame is
    repeated. Raises `InputError` for no frames, frames of different sizes, or a size that is not of whole
    merge groups.
    """
    if len(frames) == 0:
        raise InputError("a video without frames; it needs at least one.")
    pictures = [Image.fromarray(f) if isinstance(f, np.ndarray) else _rgb_only(f) for f in frames]
    first = pictures[0].size
    for index, picture in enumerate(pictures):
        if picture.size != first:
            raise InputError(f"frame {index} is {picture.size} px and frame 0 is {first}; frames must be equal in size.")
    size = first if size is None else size
    shape = grid.grid(*size, frames=len(pictures))
    pictures += [pictures[-1]] * (shape[0] * grid.temporal - len(pictures))
    planes = [_planes(p, size, resize) for p in pictures]
    patches = _rows(planes, shape, grid, normalize)
    return patches, ImageView(original=original or first, processed=size), shape


def _rgb_only(picture: Image.Image) -> Image.Image:
    if picture.mode != "RGB":
        raise InputError(f"the picture has mode {picture.mode}, expected RGB; open it with media.open_image().")
    return picture


def _planes(picture: Image.Image, size: tuple[int, int], resize: Resize) -> Planes:
    """The three channels of `picture` at `size`."""
    if resize == "fast" and picture.size != size:
        from foveal.processing.fast_resize import resize_fast

        red, green, blue = resize_fast(np.asarray(picture), size)
        return red, green, blue
    if resize not in ("exact", "fast"):
        raise InputError(f"resize={resize!r}; use 'exact' or 'fast'.")
    picture = resize_exact(picture, size)
    # One pass of Pillow's per channel is twice as fast as an interleaved copy that numpy takes apart.
    red, green, blue = (np.frombuffer(picture.tobytes("raw", c), np.uint8).reshape(size[::-1]) for c in "RGB")
    return red, green, blue


def _rows(
    frames: Sequence[Planes], shape: tuple[int, int, int], grid: PatchGrid, normalize: Normalize
) -> Float32[np.ndarray, "P C"]:
    """Patch rows of `frames`, `grid.temporal` of them for each step in time of `shape`.

    Works through one row of merge groups at a time, which stays in the processor's cache. A line of a
    patch is moved as one item of `patch` bytes. Values are (v / 255 - mean) / std in float32, step by
    step as transformers' PIL processor does it, hence equal to its values to the last bit.
    """
    patch, merge, temporal = grid.patch, grid.merge, grid.temporal
    steps, high, wide = shape
    groups, band = wide // merge, merge * wide  # merge groups, and patches, in a row of groups
    line = np.dtype((np.void, patch))
    mean = np.array(normalize.mean, np.float32)[:, None]
    std = np.array(normalize.std, np.float32)[:, None]
    rows = np.empty((steps, high // merge, band, 3, temporal, patch * patch), np.float32)
    order = np.empty((groups, merge, merge, 3, patch), line)
    values = np.empty((band, 3, patch * patch), np.float32)
    for index, frame in enumerate(frames):
        step, moment = divmod(index, temporal)
        if moment and frame is frames[index - 1]:
            continue  # an equal frame was written together with the one before it
        same = next((k for k in range(moment, temporal) if frames[step * temporal + k] is not frame), temporal)
        lines = [plane.view(line).reshape(high // merge, merge, patch, groups, merge) for plane in frame]
        for row in range(high // merge):
            for channel, plane in enumerate(lines):
                order[:, :, :, channel] = plane[row].transpose(2, 0, 3, 1)
            values[...] = order.view(np.uint8).reshape(values.shape)
            values /= np.float32(255)
            values -= mean
            values /= std
            rows[step, row, :, :, moment:same] = values[:, :, None]
    return rows.reshape(steps * high * wide, -1)
