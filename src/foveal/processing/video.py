"""Which frames of a video the model sees, when they were, and how large: `Frames` and `open_video`.

    file ──▶ every frame's time ──▶ chosen frames (even count) ──▶ `Clip`: frames, true times, effective fps

Times are true ones, as floats in seconds; no later step needs to guess them from a rate.
Sources: Qwen2-VL (arXiv 2409.12191), section 2.1; the sampling and pixel rules are those published
with the models as qwen-vl-utils 0.0.14. Three deliberate differences: a list of frames is resized once,
not twice; a video with a single frame is shown twice instead of refused; a `total_px` that cannot hold
the frames is an error.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from foveal.core.errors import BudgetError, ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.core.shapes import UInt8
from foveal.processing.media import describe, open_bytes, open_image
from foveal.processing.resize import PatchGrid, Resize, resized
from foveal.processing.video_file import FrameIndex, UnexpectedFramesError, VideoFile


@dataclass(frozen=True, kw_only=True)
class Frames:
    """How a family samples videos.

    Attributes:
        fps: frames taken per second.
        min_frames, max_frames: bounds of the number taken, rounded inwards to `multiple`.
        frame_min_px, frame_max_px: area that one processed frame should lie in.
        total_px: area of all frames together, where frames that share a patch count once.
        multiple: the number of frames is a multiple of this; the frames of a patch.
    """

    fps: int | float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    frame_min_px: int = 128 * 28 * 28
    frame_max_px: int = 768 * 28 * 28
    total_px: int = int(128000 * 28 * 28 * 0.9)
    multiple: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"Frames.{name} is {value!r}; it must be above 0.")
        for low, high in (("min_frames", "max_frames"), ("frame_min_px", "frame_max_px"), ("multiple", "max_frames")):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(f"Frames.{low}={getattr(self, low)} is above {high}={getattr(self, high)}.")


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

    def stacked(pictures: Iterator[Image.Image], count: int, source_size: tuple[int, int]) -> np.ndarray:
        size = source_size
        if grid is not None:
            size = frame_size(
                count, *source_size, grid=grid, frames=frames, min_px=min_px, max_px=max_px, total_px=total_px
            )
        stack = np.empty((count, size[1], size[0], 3), np.uint8)
        done = 0
        for picture in pictures:
            stack[done] = np.asarray(resized(picture, size, resize))
            done += 1
        stack[done:] = stack[done - 1]
        return stack

    if isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4):
        for name, value in {"fps": fps, "nframes": nframes, "start_s": start_s, "end_s": end_s}.items():
            if value is not None:
                raise InputError(f"{name} does not apply to a list of frames, which is taken whole; use sample_fps.")
        rate = float(frames.fps) if sample_fps is None else _positive("sample_fps", sample_fps)
        count = _whole(len(source), frames)
        _check_count(count, len(source) if max_frames is None else max_frames, budget, frames)
        size = _first_size(source, budget)
        stack = stacked(_pictures(source, size, budget), count, size)
        return Clip(frames=stack, times_s=tuple(k / rate for k in range(count)), fps=rate, source_size=size)

    if sample_fps is not None:
        raise InputError("sample_fps is for lists of frames; a video file has its own times. Use fps or nframes.")
    name = describe(source)
    with open_bytes(source, budget=budget) as stream:
        video = VideoFile(stream, name, budget)
        found = video.index()
        for again in (False, True):
            chosen, rate = _choose(
                found.times_s, found.fps, frames, name, fps=fps, nframes=nframes, max_frames=max_frames,
                start_s=start_s, end_s=end_s,
            )  # fmt: skip
            _check_count(len(chosen), len(chosen), budget, frames)
            distinct = sorted(set(chosen))
            try:
                stack = stacked(video.read(found, distinct), len(chosen), video.size)
                break
            except UnexpectedFramesError:
                if again:
                    raise
                found = video.counted()
    return Clip(frames=stack, times_s=_times(chosen, found, rate), fps=rate, source_size=video.size)


def plan_frames(
    duration_s: int | float,
    native_fps: int | float,
    frames: Frames,
    *,
    fps: int | float | None = None,
    nframes: int | None = None,
    max_frames: int | None = None,
    start_s: int | float | None = None,
    end_s: int | float | None = None,
) -> tuple[int, ...]:
    """Numbers of the frames that `open_video` takes of a video with a constant rate, without opening one."""
    _positive("duration_s", duration_s)
    _positive("native_fps", native_fps)
    times = [k / native_fps for k in range(max(1, round(duration_s * native_fps)))]
    return _choose(
        times, native_fps, frames, "the video", fps=fps, nframes=nframes, max_frames=max_frames,
        start_s=start_s, end_s=end_s,
    )[0]  # fmt: skip


def frame_size(
    count: int,
    width: int,
    height: int,
    *,
    grid: PatchGrid,
    frames: Frames,
    min_px: int | None = None,
    max_px: int | None = None,
    total_px: int | None = None,
) -> tuple[int, int]:
    """Processed (width, height) of each of `count` frames of `width` x `height` px.

    All frames together share `total_px`; one frame takes at most `frames.frame_max_px`, and at most
    `max_px` where given, which can only lower the limit. Raises `InputError` where the frames cannot fit.
    """
    low = frames.frame_min_px if min_px is None else min_px
    total = frames.total_px if total_px is None else total_px
    share = total / count * frames.multiple
    if low > share:
        raise InputError(
            f"total_px={total:,} leaves {share:,.0f} px to each of {count} frames, less than min_px={low:,}; "
            "take fewer frames, lower min_px or raise total_px."
        )
    high = max(min(frames.frame_max_px, share), int(low * 1.05))
    return grid.size(width, height, min_px=low, max_px=high if max_px is None else min(max_px, high))


def _choose(
    times: Sequence[float],
    native_fps: int | float,
    frames: Frames,
    name: str,
    *,
    fps: int | float | None,
    nframes: int | None,
    max_frames: int | None,
    start_s: int | float | None,
    end_s: int | float | None,
) -> tuple[tuple[int, ...], float]:
    """Numbers of the frames to take, evenly spread, and their effective rate."""
    first, last = _window(times, name, start_s, end_s)
    total = last - first + 1
    if fps is not None and nframes is not None:
        raise InputError(f"fps={fps} and nframes={nframes} were both given; give one.")
    if max_frames is not None and max_frames < frames.multiple:
        raise InputError(f"max_frames={max_frames}; it must be at least {frames.multiple}.")
    if nframes is not None:
        if max_frames is not None:
            raise InputError(f"nframes={nframes} and max_frames={max_frames} were both given; give one.")
        count = round(nframes / frames.multiple) * frames.multiple
        if not frames.multiple <= count <= total:
            raise InputError(f"nframes={nframes}; {name} offers {frames.multiple} to {total} frames.")
    else:
        low = math.ceil(frames.min_frames / frames.multiple) * frames.multiple
        high = (frames.max_frames if max_frames is None else max_frames) // frames.multiple * frames.multiple
        wish = total / native_fps * (float(frames.fps) if fps is None else _positive("fps", fps))
        count = math.floor(min(max(wish, low), high, total) / frames.multiple) * frames.multiple
    if count == 0:  # fewer frames than a patch has
        return tuple([*range(first, last + 1)] + [last] * (frames.multiple - total)), native_fps
    return _spread(first, last, count), count / total * native_fps


def _spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` whole numbers evenly from `first` to `last`; in float32 and from both ends, as published."""
    if count == 1:
        return (first,)
    step = np.float64(np.float32(last - first) / np.float32(count - 1))
    number = np.arange(count)
    # Multiply and add are rounded once, together, as fused instructions do.
    values = np.where(number < count // 2, first + step * number, last - step * (count - 1 - number))
    return tuple(int(v) for v in np.rint(values.astype(np.float32)))


def _window(
    times: Sequence[float], name: str, start_s: int | float | None, end_s: int | float | None
) -> tuple[int, int]:
    """First and last frame between `start_s` and `end_s`."""
    slack = 1e-6  # frame 3 of a video at 30 fps is at 0.1 s, whatever 3 / 30 is in floating point
    for label, value in (("start_s", start_s), ("end_s", end_s)):
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise InputError(f"{label}={value}; it must be a time in seconds, 0 or more.")
    inside = [
        k for k, t in enumerate(times)
        if (start_s is None or t >= start_s - slack) and (end_s is None or t <= end_s + slack)
    ]  # fmt: skip
    if not inside:
        raise InputError(
            f"no frame of {name} lies between start_s={start_s} and end_s={end_s}; its last is at {times[-1]:.2f} s."
        )
    return inside[0], inside[-1]


def _times(chosen: Sequence[int], found: FrameIndex, rate: float) -> tuple[float, ...]:
    times = [found.times_s[k] for k in chosen]
    for k, (a, b) in enumerate(pairwise(chosen)):
        if a == b:  # a repeated frame stands for the moment after it
            times[k + 1] = times[k] + 1 / rate
    return tuple(times)


def _whole(count: int, frames: Frames) -> int:
    if count == 0:
        raise InputError("the list of frames is empty; a video needs at least one.")
    return math.ceil(count / frames.multiple) * frames.multiple


def _check_count(count: int, most: int, budget: MediaBudget, frames: Frames) -> None:
    if count > budget.frames:
        raise BudgetError(f"{count} frames; the budget is {budget.frames}. Take fewer or raise MediaBudget.frames.")
    if count > _whole(most, frames):
        raise InputError(
            f"the list holds {count} frames, max_frames is {most}; drop some, a list is never thinned out."
        )


def _first_size(source: Sequence[Any] | np.ndarray, budget: MediaBudget) -> tuple[int, int]:
    return open_image(source[0], budget=budget).size


def _pictures(source: Sequence[Any] | np.ndarray, size: tuple[int, int], budget: MediaBudget) -> Iterator[Image.Image]:
    for number, item in enumerate(source):
        picture = open_image(item, budget=budget)
        if picture.size != size:
            raise InputError(f"frame {number} is {picture.size} px, frame 0 {size}; frames must be equal in size.")
        yield picture


def _positive(name: str, value: int | float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name}={value}; it must be above 0.")
    return float(value)
