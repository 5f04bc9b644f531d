"""Pictures and video frames to the rows of values that a patch embedding takes.

A row is one patch, flattened in the order (channel, time, row, column): C = 3 x temporal x patch x patch.
Rows come in the order (time, group row, group column, row in group, column in group), so that the
patches of a merge group are neighbours. A still picture stands as `temporal` equal frames.
Source: Qwen2-VL (arXiv 2409.12191), section 2.1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from PIL import Image

from foveal.core.box import ImageView
from foveal.core.errors import ConfigError, InputError
from foveal.core.shapes import Float32, UInt8
from foveal.processing.resize import PatchGrid, Resize, resized


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Mean and standard deviation of each channel, for values scaled to 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ConfigError(f"Normalize has mean={self.mean}, std={self.std}; expected 3 each and std above 0.")


CLIP_COLOURS = Normalize(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
"""Statistics of CLIP's training pictures, which most of this line took over."""
HALF = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""Values from -1 to 1: ViT, SigLIP and what is built on SigLIP."""


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
    shape = grid.grid(*size)
    frame = resized(_rgb_only(picture, "the picture"), size, resize)
    patches = _rows([frame], shape, grid, normalize, still=True)
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
    pictures = (_rgb_only(f, f"frame {number}") for number, f in enumerate(frames))
    first = next(pictures)
    size = first.size if size is None else size
    shape = grid.grid(*size, frames=len(frames))
    missing = shape[0] * grid.temporal - len(frames)

    def processed() -> Iterable[Image.Image]:
        last = first
        for number, picture in enumerate(chain([first], pictures)):
            if picture.size != first.size:
                raise InputError(f"frame {number} is {picture.size} px, frame 0 {first.size}; they must be equal.")
            last = resized(picture, size, resize)
            yield last
        yield from repeat(last, missing)

    patches = _rows(processed(), shape, grid, normalize)
    return patches, ImageView(original=original or first.size, processed=size), shape


def _rgb_only(picture: Image.Image | np.ndarray, name: str) -> Image.Image:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"{name} is {picture.dtype} of shape {picture.shape}, expected uint8 [H, W, 3].")
        return Image.fromarray(picture)
    if picture.mode != "RGB":
        raise InputError(f"{name} has mode {picture.mode}, expected RGB; open it with media.open_image().")
    return picture


def _rows(
    frames: Iterable[Image.Image],
    shape: tuple[int, int, int],
    grid: PatchGrid,
    normalize: Normalize,
    still: bool = False,
) -> Float32[np.ndarray, "P C"]:
    """Patch rows of `frames`, `grid.temporal` of them for each step in time of `shape`; of one frame if `still`.

    Works through one row of merge groups at a time, which stays in the processor's cache. Pillow takes
    the channels apart, and a line of a patch is moved as one item of `patch` bytes: of all ways tried
    the fastest (benchmarks/LOG.md). Values are (v / 255 - mean) / std in float32, step by
    step as transformers' PIL processor does it, hence equal to its values to the last bit.
    """
    patch, merge, temporal = grid.patch, grid.merge, grid.temporal
    steps, high, wide = shape
    bands, groups = high // merge, wide // merge  # rows of merge groups, and groups in a row
    line = np.dtype((np.void, patch))
    mean = np.array(normalize.mean, np.float32)[:, None]
    std = np.array(normalize.std, np.float32)[:, None]
    rows = np.empty((steps, bands, merge * wide, 3, temporal, patch * patch), np.float32)
    order = np.empty((groups, merge, merge, 3, patch), line)
    values = np.empty((merge * wide, 3, patch * patch), np.float32)
    for index, frame in enumerate(frames):
        step, moment = divmod(index, temporal)
        moments = slice(None) if still else slice(moment, moment + 1)
        for band in range(bands):
            strip = frame.crop((0, band * grid.factor, frame.width, (band + 1) * grid.factor))
            for channel, letter in enumerate("RGB"):
                plane = np.frombuffer(strip.tobytes("raw", letter), line).reshape(merge, patch, groups, merge)
                order[:, :, :, channel] = plane.transpose(2, 0, 3, 1)
            values[...] = order.view(np.uint8).reshape(values.shape)
            values /= np.float32(255)
            values -= mean
            values /= std
            rows[step, band, :, :, moments] = values[:, :, None]
    return rows.reshape(steps * high * wide, -1)
