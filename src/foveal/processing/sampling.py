"""Which frames of a video the model sees, and how large: `Frames`, `choose_frames`, `frame_size`.

Nothing is opened here, so `plan_frames` can tell beforehand what a video will cost.
Sources: Qwen2-VL (arXiv 2409.12191), section 2.1; the sampling and pixel rules are those published with
the models as qwen-vl-utils 0.0.14. Two deliberate differences: a video with a single frame is shown
twice instead of refused, and a `total_px` that cannot hold the frames is an error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveal.core.errors import ConfigError, InputError
from foveal.processing.resize import MAX_RATIO, PatchGrid


@dataclass(frozen=True, kw_only=True)
class Frames:
    """How a family samples videos.

    Attributes:
        fps: frames taken per second.
        min_frames, max_frames: bounds of the number taken, rounded inwards to `multiple`.
        frame_min_px, frame_max_px: area that one processed frame should lie in.
        total_px: area of all frames together, where frames that share a patch count once.
        multiple: the number of frames is a multiple of this; the frames of a patch.
        volume_px: least and largest area of all frames together, every frame counted (Qwen3-VL); this replaces
            `frame_min_px` and `total_px`, and frames are chosen as transformers chooses them for such models.
        capped: with `volume_px`, no frame takes more than `frame_max_px`.
    """

    fps: int | float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    frame_min_px: int = 128 * 28 * 28
    frame_max_px: int = 768 * 28 * 28
    total_px: int = int(128000 * 28 * 28 * 0.9)
    multiple: int = 2
    volume_px: tuple[int, int] | None = None
    capped: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("volume_px", "capped") and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"Frames.{name} is {value!r}; it must be above 0.")
        if self.volume_px is not None and not 1 <= self.volume_px[0] <= self.volume_px[1]:
            raise ConfigError(f"Frames.volume_px is {self.volume_px}; expected a least and a larger largest area.")
        pairs = [("min_frames", "max_frames"), ("multiple", "max_frames")]
        pairs += [("frame_min_px", "frame_max_px")] * (self.volume_px is None)
        for low, high in pairs:
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(f"Frames.{low}={getattr(self, low)} is above {high}={getattr(self, high)}.")


def choose_frames(
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
    """Numbers of the frames to take of a video whose frames are at `times`, and their effective rate.

    They are evenly spread between `start_s` and `end_s`. Raises `InputError` for options that contradict
    each other or the video, which `name` names in the message.
    """
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
        if not frames.multiple <= count <= max(total, frames.multiple):
            raise InputError(f"nframes={nframes}; of {name} {frames.multiple} to {total} frames can be taken.")
    else:
        low = math.ceil(frames.min_frames / frames.multiple) * frames.multiple
        high = (frames.max_frames if max_frames is None else max_frames) // frames.multiple * frames.multiple
        wish = total / native_fps * (float(frames.fps) if fps is None else positive("fps", fps))
        count = math.floor(min(max(wish, low), high, total) / frames.multiple) * frames.multiple
    if total < frames.multiple:  # fewer than a patch has
        return tuple([*range(first, last + 1)] + [last] * (frames.multiple - total)), float(native_fps)
    if frames.volume_px is not None:
        chosen = np.rint(np.linspace(first, last, count)).astype(np.int64).tolist()
        return tuple(chosen), count / total * native_fps
    return _spread(first, last, count), count / total * native_fps


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
    return plan_sampling(
        duration_s, native_fps, frames, fps=fps, nframes=nframes, max_frames=max_frames, start_s=start_s, end_s=end_s
    )[0]


def plan_sampling(
    duration_s: int | float,
    native_fps: int | float,
    frames: Frames,
    *,
    fps: int | float | None = None,
    nframes: int | None = None,
    max_frames: int | None = None,
    start_s: int | float | None = None,
    end_s: int | float | None = None,
) -> tuple[tuple[int, ...], float]:
    """As `plan_frames`, with the effective rate."""
    positive("duration_s", duration_s)
    positive("native_fps", native_fps)
    times = [k / native_fps for k in range(max(1, round(duration_s * native_fps)))]
    return choose_frames(
        times, native_fps, frames, "the video", fps=fps, nframes=nframes, max_frames=max_frames,
        start_s=start_s, end_s=end_s,
    )  # fmt: skip


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
    if frames.volume_px is not None:
        return _volume_size(count, width, height, grid, frames, min_px, max_px, total_px)
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


def _volume_size(
    count: int,
    width: int,
    height: int,
    grid: PatchGrid,
    frames: Frames,
    min_px: int | None,
    max_px: int | None,
    total_px: int | None,
) -> tuple[int, int]:
    """The size at which `count` frames keep within `frames.volume_px`, as the processor of Qwen3-VL computes it.

    `min_px` and `max_px` hold for each frame and `total_px` for all, as in `frame_size`.
    """
    least, most = frames.volume_px or (1, 1)
    count, factor = max(count, grid.temporal), grid.factor
    low = least if min_px is None else min_px * count
    high = most if total_px is None else total_px * grid.temporal
    if frames.capped:
        high = max(min(frames.frame_max_px, high // count), int(low * 1.05)) * count
    if max_px is not None:
        high = min(high, max_px * count)
    if low > high:
        raise InputError(
            f"{count} frames: at least {low:,} px and at most {high:,} px in all; take fewer frames, lower min_pixels, "
            "or raise max_pixels or total_pixels."
        )
    if width < 1 or height < 1:
        raise InputError(f"the video is {width} x {height} px; both sides must be at least 1 px.")
    if min(width, height) < factor:  # smaller than a token: enlarged first
        scale = max(factor / height, factor / width)
        width, height = int(width * scale), int(height * scale)
    if max(width, height) / min(width, height) > MAX_RATIO:
        raise InputError(f"the video has a side ratio above {MAX_RATIO}; crop it.")
    sides = [round(side / factor) * factor for side in (width, height)]
    volume = round(count / grid.temporal) * grid.temporal * sides[0] * sides[1]
    if volume > high:
        shrink = math.sqrt(count * height * width / high)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)]
    elif volume < low:
        grow = math.sqrt(low / (count * height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    return sides[0], sides[1]


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


def positive(name: str, value: int | float) -> float:
    """`value`, or an `InputError` that names the option."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name}={value}; it must be above 0.")
    return float(value)
