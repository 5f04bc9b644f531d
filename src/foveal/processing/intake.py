"""From a part of a message to what a model sees of it: what all families share.

A `Vision` opens media and measures them; there is one for pictures of any size (`native`), one for squares
(`square`), and families with a way of their own declare it in the same form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from foveal.core.errors import InputError
from foveal.core.media import MediaBudget
from foveal.core.packed import Medium
from foveal.core.shapes import Float32
from foveal.processing.messages import ImagePart, VideoPart, checked_number
from foveal.processing.resize import Resize


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A medium's record, its patches, and arrays that only its family needs (for `Packed.extra`), by name."""

    medium: Medium
    patches: Float32[np.ndarray, "_ C"]
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VideoShape:
    """A video of which nothing is opened: size in pixels, length, and frames per second of the file."""

    width: int
    height: int
    seconds: float
    fps: float = 30.0


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

    def refuse(self, names: Sequence[str], why: str) -> None:
        """Raises `InputError` if a setting of `names` was made, which a family has no use for."""
        for name in names:
            if getattr(self, name) is not None:
                raise InputError(f"{name}={getattr(self, name)}: {why}; leave it out.")


@runtime_checkable
class Vision(Protocol):
    """How a family turns media into patches."""

    @property
    def patch_values(self) -> int:
        """C: numbers in one row of patches."""
        ...

    def pixel_range(self, *, images: bool, videos: bool) -> tuple[int, int] | None:
        """Least and largest `max_pixels` that make a difference to such media; None where the size is fixed."""
        ...

    def read(self, folder: Path) -> "Vision":
        """The same with the settings that a published folder states; `ConfigError` for what is not supported."""
        ...

    def files(self) -> dict[str, dict[str, Any]]:
        """Its settings as published JSON files, by name: `read` gives the same settings back."""
        ...

    def open(
        self, part: ImagePart | VideoPart, *, budget: MediaBudget, knobs: Knobs, count: int, patches: bool = True
    ) -> Opened:
        """Opens one of `count` media of a conversation, as of sequence 0; with `patches` off, no patch is made."""
        ...

    def measure_image(self, width: int, height: int, *, knobs: Knobs, count: int) -> Medium:
        """The record of an image, one of `count` media, of which only the size is known."""
        ...

    def measure_video(self, video: VideoShape, *, knobs: Knobs, count: int) -> Medium:
        """The record of a video, one of `count` media, of which only size, length and frame rate are known."""
        ...

    def cells(self, medium: Medium) -> tuple[int, int, int]:
        """A medium's visual tokens in time, height and width, for positions; their product is its token count."""
        ...

    def pixels_for(self, tokens: int) -> int | None:
        """The `max_pixels` with which an image takes at most `tokens`; None where the size is fixed."""
        ...
