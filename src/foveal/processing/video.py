"""Videos as sampled frames with true times: `open_video`.

    file ──▶ every frame's time ──▶ chosen frames (even count) ──▶ `Clip`: frames, true times, effective fps

Times are true ones, as floats in seconds; no later step needs to guess them from a rate. A list of frames
is resized once, straight to its final size; the published tools resize it twice.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from foveal.core.errors import BudgetError, InputError
from foveal.core.media import MediaBudget
from foveal.core.shapes import UInt8
from foveal.processing.media import describe, open_bytes, open_image
from foveal.processing.resize import PatchGrid, Resize, resized
from foveal.processing.sampling import Frames, choose_frames, frame_size, plan_frames, positive
from foveal.processing.video_file import FrameIndex, UnexpectedFramesError, VideoFile

__all__ = ["Clip", "Frames", "frame_size", "open_video", "plan_frames"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The sampled frames of a video.

    Attributes:
        frames: RGB [F, H, W, 3].
        times_s: when each frame was, in seconds from the first frame of the video; strictly rising.
        fps: effective frames per second after sampling.
        source_size: (width, height) of the video as its user knows it, in pixels.
    """

    frames: UInt8[np.ndarray, "F H W 3"]
    times_s: tuple[float, ...]
    fps: float
    source_size: tuple[int, int]


def open_video(
    source: Any,
    *,
    frames: Frames,
    budget: MediaBudget,
    grid: PatchGrid | None = None,
    fps: int | float | None = None,
    nframes: int | None = None,
    max_frames: int | None = None,
    start_s: int | float | None = None,
    end_s: int | float | None = None,
    sample_fps: int | float | None = None,
    min_px: int | None = None,
    max_px: int | None = None,
    total_px: int | None = None,
    resize: Resize = "exact",
) -> Clip:
    """The sampled frames of a video file (path, URL, bytes) or of a list of frames.

    With `grid` the frames come at the size of `frame_size`, made so one by one: memory is bounded by
    `total_px`, not by the video. Without it they come as they are.
    Of a file, `fps` (or `nframes`), `max_frames`, `start_s` and `end_s` say which frames are taken. A list
    (pictures in any form that `open_image` takes, or an array [F, H, W, 3]) is taken whole, at
    `sample_fps` (default: `frames.fps`); the last frame is repeated to fill the last patch.

    Raises `InputError`, `MediaError` or `BudgetError`, and `MissingExtraError` for a file without PyAV.
    """
    if grid is None and not (min_px is None and max_px is None and total_px is None):
        raise InputError("min_px, max_px and total_px need the grid that they hold for; pass grid=.")

    stack = _Stack(frames, grid, min_px, max_px, total_px, resize)
    if isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4):
        for name, value in {"fps": fps, "nframes": nframes, "start_s": start_s, "end_s": end_s}.items():
            if value is not None:
                raise InputError(f"{name} does not apply to a list of frames, which is taken whole; use sample_fps.")
        rate = float(frames.fps) if sample_fps is None else positive("sample_fps", sample_fps)
        return _listed(source, stack, budget, max_frames, rate)
    if sample_fps is not None:
        raise InputError("sample_fps is for lists of frames; a video file has its own times. Use fps or nframes.")
    name = describe(source)
    with open_bytes(source, budget=budget) as stream:
        video = VideoFile(stream, name, budget)
        options = {"fps": fps, "nframes": nframes, "max_frames": max_frames, "start_s": start_s, "end_s": end_s}
        try:
            return _sampled(video, video.index(), stack, budget, options)
        except UnexpectedFramesError:
            return _sampled(video, video.counted(), stack, budget, options)


def _sampled(
    video: VideoFile, found: FrameIndex, stack: "_Stack", budget: MediaBudget, options: dict[str, Any]
) -> Clip:
    chosen, rate = choose_frames(found.times_s, found.fps, stack.frames, video.name, **options)
    _check_count(len(chosen), budget, video.name)
    pixels = stack.filled(video.read(found, sorted(set(chosen))), len(chosen), video.size)
    times = [found.times_s[k] for k in chosen]
    for k, (a, b) in enumerate(pairwise(chosen)):
        if a == b:  # a repeated frame stands for the moment after it
            times[k + 1] = times[k] + 1 / rate
    return Clip(frames=pixels, times_s=tuple(times), fps=rate, source_size=video.size)


def _listed(
    source: Sequence[Any] | np.ndarray, stack: "_Stack", budget: MediaBudget, max_frames: int | None, rate: float
) -> Clip:
    name, multiple = describe(source), stack.frames.multiple
    if len(source) == 0:
        raise InputError(f"{name} is empty; a video needs at least one frame.")
    if max_frames is not None and len(source) > max_frames:
        raise InputError(f"{name} is longer than max_frames={max_frames}; drop some, a list is never thinned out.")
    count = math.ceil(len(source) / multiple) * multiple
    _check_count(count, budget, name)
    first = open_image(source[0], budget=budget)

    def pictures() -> Iterator[Image.Image]:
        yield first
        for number in range(1, len(source)):
            picture = open_image(source[number], budget=budget)
            if picture.size != first.size:
                raise InputError(f"frame {number} is {picture.size} px, frame 0 {first.size}; they must be equal.")
            yield picture

    times = tuple(k / rate for k in range(count))
    return Clip(frames=stack.filled(pictures(), count, first.size), times_s=times, fps=rate, source_size=first.size)


@dataclass(frozen=True)
class _Stack:
    """How the frames of a clip are brought to their size and into one array."""

    frames: Frames
    grid: PatchGrid | None
    min_px: int | None
    max_px: int | None
    total_px: int | None
    resize: Resize

    def filled(
        self, pictures: Iterator[Image.Image], count: int, source_size: tuple[int, int]
    ) -> UInt8[np.ndarray, "F H W 3"]:
        """`pictures` one by one; the last is repeated where there are fewer than `count`."""
        size = source_size
        if self.grid is not None:
            size = frame_size(
                count, *source_size, grid=self.grid, frames=self.frames,
                min_px=self.min_px, max_px=self.max_px, total_px=self.total_px,
            )  # fmt: skip
        pixels = np.empty((count, size[1], size[0], 3), np.uint8)
        done = 0
        for picture in pictures:
            pixels[done] = np.asarray(resized(picture, size, self.resize))
            done += 1
        pixels[done:] = pixels[done - 1]
        return pixels


def _check_count(count: int, budget: MediaBudget, name: str) -> None:
    if count > budget.frames:
        raise BudgetError(
            f"{name}: {count} frames are to be taken, the budget is {budget.frames}. "
            "Take fewer (fps, nframes, max_frames) or raise MediaBudget.frames."
        )
