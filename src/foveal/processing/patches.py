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
from foveal.processing.exact import native
from foveal.processing.resize import PatchGrid, Pixels, Resize, as_image, resized, size_of


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
    picture: Pixels,
    *,
    grid: PatchGrid,
    normalize: Normalize,
    size: tuple[int, int] | None = None,
    resize: Resize = "exact",
) -> tuple[Float32[np.ndarray, "P C"], ImageView, tuple[int, int, int]]:
    """Patch rows of a still picture (RGB, from `media`), its two sizes, and its grid (t, h, w).

    `size` is the processed (width, height); None for the grid's own choice. Raises `InputError` as `PatchGrid.size`
    does, and for a size that is not of whole merge groups.
    """
    picture = _rgb_only(picture, "the picture")
    original = size_of(picture)
    size = grid.size(*original) if size is None else size
    shape = grid.grid(*size)
    patches = _rows([resized(picture, size, resize)], shape, grid, normalize, still=True)
    return patches, ImageView(original=original, processed=size), shape


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
    source_size = size_of(first)
    size = source_size if size is None else size
    shape = grid.grid(*size, frames=len(frames))
    missing = shape[0] * grid.temporal - len(frames)

    def processed() -> Iterable[Pixels]:
        last = first
        for number, picture in enumerate(chain([first], pictures)):
            if size_of(picture) != source_size:
                raise InputError(f"frame {number} is {size_of(picture)} px, frame 0 {source_size}; they must be equal.")
            last = resized(picture, size, resize)
            yield last
        yield from repeat(last, missing)

    patches = _rows(processed(), shape, grid, normalize)
    return patches, ImageView(original=original or source_size, processed=size), shape


def _rgb_only(picture: Pixels | np.ndarray, name: str) -> Pixels:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"{name} is {picture.dtype} of shape {picture.shape}, expected uint8 [H, W, 3].")
        return picture
    if picture.mode != "RGB":
        raise InputError(f"{name} has mode {picture.mode}, expected RGB; open it with media.open_image().")
    return picture


def _rows(
    frames: Iterable[Pixels],
    shape: tuple[int, int, int],
    grid: PatchGrid,
    normalize: Normalize,
    still: bool = False,
) -> Float32[np.ndarray, "P C"]:
    """Patch rows of `frames`, `grid.temporal` of them for each step in time of `shape`; of one frame if `still`.

    Works through one row of merge groups at a time, which stays in the processor's cache. Values are
    (v / 255 - mean) / std in float32, step by step as transformers' PIL processor does it, hence equal to its
    values to the last bit.
    """
    steps, high, wide = shape
    bands = high // grid.merge  # rows of merge groups
    rows = np.empty((steps, bands, grid.merge * wide, 3, grid.temporal, grid.patch**2), np.float32)
    levels = _levels(normalize)
    for index, frame in enumerate(frames):
        step, moment = divmod(index, grid.temporal)
        first, last = (0, grid.temporal) if still else (moment, moment + 1)
        picture = as_image(frame) if native is None else frame
        for band in range(bands):
            strip = _strip(picture, band * grid.factor, (band + 1) * grid.factor)
            if isinstance(strip, Image.Image):
                rows[step, band, :, :, first:last] = _cut_by_numpy(strip, grid, normalize)[:, :, None]
            else:
                native.cut(
                    strip, levels, rows[step, band], grid.merge, wide, grid.patch, grid.merge, grid.temporal,
                    first, last - first,
                )  # fmt: skip
    return rows.reshape(steps * high * wide, -1)


def _strip(picture: Pixels, top: int, bottom: int) -> Pixels:
    """Some rows of a picture, as an array where the C module can take it."""
    if isinstance(picture, np.ndarray):
        return np.ascontiguousarray(picture[top:bottom])
    strip = picture.crop((0, top, picture.width, bottom))
    return strip if native is None else np.asarray(strip)


def _levels(normalize: Normalize) -> Float32[np.ndarray, "3 256"]:
    """The value of every level of every channel."""
    values = np.tile(np.arange(256, dtype=np.float32) / np.float32(255), (3, 1))
    values -= np.array(normalize.mean, np.float32)[:, None]
    values /= np.array(normalize.std, np.float32)[:, None]
    return values


def _cut_by_numpy(strip: Image.Image, grid: PatchGrid, normalize: Normalize) -> Float32[np.ndarray, "P 3 A"]:
    """A row of merge groups as patches, without the C module.

    Pillow takes the channels apart, and a line of a patch is moved as one item of `patch` bytes: of all ways
    tried the fastest (benchmarks/LOG.md).
    """
    patch, merge = grid.patch, grid.merge
    groups = strip.width // grid.factor
    line = np.dtype((np.void, patch))
    order = np.empty((groups, merge, merge, 3, patch), line)
    for channel, letter in enumerate("RGB"):
        plane = np.frombuffer(strip.tobytes("raw", letter), line).reshape(merge, patch, groups, merge)
        order[:, :, :, channel] = plane.transpose(2, 0, 3, 1)
    values = order.view(np.uint8).reshape(-1, 3, patch * patch).astype(np.float32)
    values /= np.float32(255)
    values -= np.array(normalize.mean, np.float32)[:, None]
    values /= np.array(normalize.std, np.float32)[:, None]
    return values
