"""What a request may cost before anything is opened: `MediaBudget`."""

from dataclasses import dataclass

from foveal.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MediaBudget:
    """Upper bounds that hold for every medium and for a request as a whole.

    Sizes are taken from headers, before decoding. Reaching a bound is a `BudgetError`, never a
    silent cut. The defaults suit one person at their own machine; a server sets tighter ones.
    """

    media: int = 256
    """Images and videos in one conversation."""
    file_bytes: int = 512 * 1024**2
    """Bytes of one encoded file or data URL."""
    image_px: int = 100_000_000
    """Pixels (width x height) of one decoded picture or video frame."""
    frames: int = 768
    """Frames taken from one video."""
    video_s: float = 4 * 3600.0
    """Length of one video in seconds."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"MediaBudget.{name} is {value!r}; it must be above 0.")
