"""From a part of a message to what the model sees of it.

`open_medium` opens it; `measure_image` and `measure_video` know it by its size alone.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from foveal.core.box import ImageView
from foveal.core.errors import InputError
from foveal.core.media import MediaBudget
from foveal.core.packed import Medium
from foveal.core.shapes import Float32
from foveal.processing.media import describe, open_image
from foveal.processing.messages import ImagePart, VideoPart, checked_number
from foveal.processing.patches import Normalize, image_patches, video_patches
from foveal.processing.resize import PatchGrid, Resize, resized
from foveal.processing.video import Frames, frame_size, open_video, plan_frames

Opened: TypeAlias = tuple[Medium, Float32[np.ndarray, "_ C"]]
"""A medium's record and its patches."""


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """Settings of a call, for every medium whose own part does not say otherwise.

    `fps`, `nframes` and `max_frames` hold for video files, and `max_frames` for lists of frames too.
    `resize` is "exact" (as published) or "fast" (see `foveal.processing.fast_resize`).
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    nframes: int | None = None
    max_frames: int | None = None
    resize: Resize = "exact"

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "fps", "nframes", "max_frames"):
            value = getattr(self, name)
            if value is not None:
                checked_number(value, name, "the call")
        if self.fps is not None and self.nframes is not None:
            raise InputError(f"fps={self.fps} and nframes={self.nframes} both say how many frames to take; give one.")
        if self.resize not in ("exact", "fast"):
            raise InputError(f"resize={self.resize!r}; use 'exact' or 'fast'.")

    def sampling(self, part: VideoPart) -> dict[str, Any]:
        """How the frames of a video are taken: what the part says, else what the call says."""
        most = self.max_frames if part.max_frames is None else part.max_frames
        if isinstance(part.source, list | tuple | np.ndarray):
            return {"max_frames": most, "sample_fps": part.sample_fps}
        own = part.fps is not None or part.nframes is not None
        fps, nframes = (part.fps, part.nframes) if own else (self.fps, self.nframes)
        if own and part.nframes is not None:
            most = part.max_frames  # an exact number of the part stands above a bound of the call
        return {"fps": fps, "nframes": nframes, "max_frames": most, "start_s": part.start_s, "end_s": part.end_s}

    def limits(self, part: ImagePart | VideoPart) -> tuple[int | None, int | None]:
        """Least and largest area in pixels for a medium; None leaves it to the family."""
        low = self.min_pixels if part.min_pixels is None else part.min_pixels
        high = self.max_pixels if part.max_pixels is None else part.max_pixels
        return low, high


@dataclass(frozen=True, kw_only=True)
class Vision:
    """The settings of a family (or checkpoint) that turn media into patches."""

    resize: PatchGrid
    normalize: Normalize
    video: Frames


def open_medium(
    part: ImagePart | VideoPart, *, vision: Vision, budget: MediaBudget, knobs: Knobs, patches: bool = True
) -> Opened:
    """Opens an image or video: its record (of sequence 0) and its patches; with `patches` off, none of them.

    Raises:
        InputError, MediaError, BudgetError: see `foveal.processing.media` and `.video`.
    """
    grid, normalize = vision.resize, vision.normalize
    low, high = knobs.limits(part)
    name = describe(part.source)
    rows = np.zeros((0, 3 * grid.temporal * grid.patch**2), dtype=np.float32)
    if isinstance(part, VideoPart):
        clip = open_video(
            part.source, frames=vision.video, budget=budget, grid=grid, min_px=low, max_px=high,
            total_px=part.total_pixels, resize=knobs.resize, **knobs.sampling(part),
        )  # fmt: skip
        count, height, width = clip.frames.shape[:3]
        view, shape = ImageView(original=clip.source_size, processed=(width, height)), grid.grid(width, height, count)
        if patches:
            rows, _, shape = video_patches(clip.frames, grid=grid, normalize=normalize)
        return _medium("video", view, shape, grid, name, clip.times_s), rows
    picture = open_image(part.source, budget=budget)
    original = picture.size
    if part.resized is not None:
        picture = resized(picture, grid.size(*part.resized, min_px=low, max_px=high), knobs.resize)
    size = grid.size(*picture.size, min_px=low, max_px=high)
    view, shape = ImageView(original=original, processed=size), grid.grid(*size)
    if patches:
        rows, _, shape = image_patches(
            picture, grid=grid, normalize=normalize, min_px=low, max_px=high, resize=knobs.resize
        )
    return _medium("image", view, shape, grid, name), rows


def measure_image(width: int, height: int, *, vision: Vision, knobs: Knobs) -> Medium:
    """The record of an image of which only the size is known."""
    size = vision.resize.size(width, height, min_px=knobs.min_pixels, max_px=knobs.max_pixels)
    view = ImageView(original=(width, height), processed=size)
    return _medium("image", view, vision.resize.grid(*size), vision.resize, f"{width} x {height} px")


def measure_video(
    width: int, height: int, seconds: float, native_fps: float, *, vision: Vision, knobs: Knobs
) -> Medium:
    """The record of a video file of which only size, length and frame rate are known."""
    chosen = plan_frames(
        seconds, native_fps, vision.video, fps=knobs.fps, nframes=knobs.nframes, max_frames=knobs.max_frames
    )
    limits = {"min_px": knobs.min_pixels, "max_px": knobs.max_pixels}
    size = frame_size(len(chosen), width, height, grid=vision.resize, frames=vision.video, **limits)
    view = ImageView(original=(width, height), processed=size)
    shape = vision.resize.grid(*size, frames=len(chosen))
    times = tuple(k / native_fps for k in chosen)
    return _medium("video", view, shape, vision.resize, f"{width} x {height} px, {seconds:g} s", times)


def _medium(
    kind: str,
    view: ImageView,
    shape: tuple[int, int, int],
    grid: PatchGrid,
    source: str,
    times_s: tuple[float, ...] = (),
) -> Medium:
    return Medium(
        kind=kind, sequence=0, view=view, grid=shape, tokens=grid.tokens(shape), times_s=times_s, source=source
    )
