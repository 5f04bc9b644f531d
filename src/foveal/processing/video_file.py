"""Frames of an encoded video by PyAV: which there are and when, then only those that are wanted.

`VideoFile` first reads the packets without decoding them, which gives every frame's time and the places
where decoding can start. Wanted frames are then reached by jumping to the nearest such place. Where a
file has no usable time stamps, every frame is decoded and counted instead. Nothing is kept but the
frame at hand.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import pairwise
from typing import Any

from PIL import Image

from foveal.core.errors import BudgetError, MediaError, MissingExtraError
from foveal.core.media import MediaBudget

# Formats that hold their own frames. Play lists (HLS, concat) would open other files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,gif,ogg,asf"
_DECODERS = frozenset(
    "h264 hevc av1 libdav1d libaom-av1 vp8 libvpx vp9 libvpx-vp9 mpeg4 mpeg2video mpeg1video mjpeg h263 theora prores "
    "dnxhd gif flv msmpeg4v2 msmpeg4v3 wmv1 wmv2 wmv3 vc1 ffv1 rawvideo".split()
)
_FASTEST_FPS = 240  # bounds how many packets a file of budgeted length can have
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class UnexpectedFramesError(MediaError):
    """Decoding gave other frames than the packets announced; caught here and in `video`, which then count."""


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """The frames of a file in the order of display.

    Attributes:
        times_s: time of each frame in seconds, strictly rising, from 0 on.
        stamps: its time stamp in the file's own units; empty where frames are told apart by counting.
        entries: numbers of the frames where decoding can start.
        fps: average frames per second.
    """

    times_s: tuple[float, ...]
    stamps: tuple[int, ...] = ()
    entries: tuple[int, ...] = ()
    fps: float


class VideoFile:
    """An encoded video, open for reading.

    Attributes:
        name: how messages call it.
        size: (width, height) in pixels as displayed, after rotation.
    """

    def __init__(self, stream: BufferedIOBase, name: str, budget: MediaBudget):
        """Reads the header. Raises `MediaError`, `BudgetError` or, without PyAV, `MissingExtraError`."""
        self._stream, self.name, self._budget = stream, name, budget
        self._av = _library()
        with self._opened() as (container, video):
            self._check(container, video)
            self._rate = float(video.average_rate or video.guessed_rate or 0)
        first = next(self._decoded(), None)
        if first is None:
            raise MediaError(f"{name} holds no frame that can be decoded.")
        self._turn = first.rotation % 360
        self.size = (first.height, first.width) if self._turn in (90, 270) else (first.width, first.height)

    def index(self) -> FrameIndex:
        """Every frame's time, from the packets; from decoding where the packets do not say."""
        stamps: list[int | None] = []
        keys: list[int] = []
        packets = 0
        limit = self._budget.video_s * _FASTEST_FPS
        with self._opened() as (container, video):
            base = float(video.time_base or 0)
            declared = video.frames if "mp4" in container.format.name else 0  # elsewhere it is an estimate
            for packet in container.demux(video):
                if packet.dts is None and not packet.size:
                    continue  # the end
                packets += 1
                if packets > limit:
                    raise BudgetError(f"{self.name} has more than {limit:,.0f} frames; cut it, or raise video_s.")
                if packet.is_corrupt:
                    raise MediaError(f"{self.name} is cut off or damaged after {packets - 1} frames.")
                if packet.is_discard or not packet.size:
                    continue
                stamps.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
        if packets < declared:
            raise MediaError(f"{self.name} is cut off: it has {packets} of {declared} frames. Copy it again.")
        known = sorted(s for s in stamps if s is not None)
        if not base or len(known) < len(stamps) or len(set(known)) < len(known) or not known:
            return self.counted()
        entries = tuple(bisect_left(known, key) for key in sorted(keys))
        return self._index([s * base for s in known], tuple(known), entries)

    def counted(self) -> FrameIndex:
        """Every frame's time, from decoding them all: slow, but sure."""
        times: list[float] = []
        for frame in self._decoded():
            times.append(len(times) / (self._rate or 25.0) if frame.time is None else frame.time)
            if len(times) > self._budget.video_s * _FASTEST_FPS:
                raise BudgetError(f"{self.name} has more than {len(times):,} frames; cut it, or raise video_s.")
        if any(b <= a for a, b in pairwise(times)):
            times = [k / (self._rate or 25.0) for k in range(len(times))]
        return self._index(times)

    def _index(self, times: list[float], stamps: tuple[int, ...] = (), entries: tuple[int, ...] = ()) -> FrameIndex:
        span = times[-1] - times[0]
        measured = (len(times) - 1) / span if span > 0 else 0.0
        # Stamps are often rounded to milliseconds: the header's rate is better unless it is plainly wrong.
        near = self._rate > 0 and (not measured or abs(self._rate / measured - 1) < 0.01)
        fps = self._rate if near else measured or self._rate or 25.0
        if span + 1 / fps > self._budget.video_s:
            raise self._too_long(span)
        return FrameIndex(times_s=tuple(t - times[0] for t in times), stamps=stamps, entries=entries, fps=fps)

    def read(self, index: FrameIndex, wanted: Sequence[int]) -> Iterator[Image.Image]:
        """The frames number `wanted` (rising) as upright RGB pictures.

        Raises `UnexpectedFramesError` where the file has other frames than `index` says, `MediaError` where one
        is damaged.
        """
        found = 0
        for frame in self._counting(wanted) if not index.stamps else self._jumping(index, wanted):
            if frame.is_corrupt:
                raise MediaError(f"{self.name}: the frame at {index.times_s[wanted[found]]:.2f} s is damaged.")
            found += 1
            yield self._picture(frame)
        if found < len(wanted):
            raise UnexpectedFramesError(f"{self.name} is damaged: {len(wanted) - found} of its frames are missing.")

    def _counting(self, wanted: Sequence[int]) -> Iterator[Any]:
        left = set(wanted)
        for number, frame in enumerate(self._decoded()):
            if number in left:
                left.remove(number)
                yield frame
                if not left:
                    return

    def _jumping(self, index: FrameIndex, wanted: Sequence[int]) -> Iterator[Any]:
        with self._opened() as (container, video):
            frames, last = container.decode(video), -1
            for number in wanted:
                entry = bisect_right(index.entries, number) - 1
                if entry >= 0 and index.entries[entry] > last + 1:
                    container.seek(index.stamps[index.entries[entry]], stream=video)
                    frames = container.decode(video)
                frame = self._forward(frames, index.stamps[number])
                if frame is None:
                    return
                last = number
                yield frame

    @staticmethod
    def _forward(frames: Iterator[Any], stamp: int) -> Any:
        for frame in frames:
            if frame.pts == stamp:
                return frame
            if frame.pts is None or frame.pts > stamp:
                break
        return None

    def _picture(self, frame: Any) -> Image.Image:
        with self._guarded():
            picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
        turn = _TURNS.get(self._turn)
        return picture if turn is None else picture.transpose(turn)

    def _decoded(self) -> Iterator[Any]:
        with self._opened() as (container, video):
            yield from container.decode(video)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        self._stream.seek(0)
        with (
            self._guarded(),
            self._av.open(
                self._stream,
                options={
                    "format_whitelist": _CONTAINERS,
                    "codec_whitelist": ",".join(sorted(_DECODERS)),
                    "protocol_whitelist": "none",
                },
                metadata_errors="replace",
            ) as container,
        ):
            cover = self._av.stream.Disposition.attached_pic
            tracks = [s for s in container.streams.video if not s.disposition & cover]
            if not tracks:
                raise MediaError(f"{self.name} has no moving picture (only sound, or a cover).")
            if tracks[0].codec_context is None:
                raise MediaError(f"{self.name} is coded in a way that is not known; convert it to H.264 in MP4.")
            tracks[0].thread_type = "AUTO"
            tracks[0].codec_context.options = {"max_pixels": str(self._budget.image_px)}
            yield container, tracks[0]

    def _check(self, container: Any, video: Any) -> None:
        width, height, decoder = video.codec_context.width, video.codec_context.height, video.codec_context.name
        if decoder not in _DECODERS:
            raise MediaError(f"{self.name} is coded as {decoder}, which is not read; convert it to H.264 in MP4.")
        if width * height > self._budget.image_px:
            raise BudgetError(
                f"{self.name} has frames of {width} x {height} px; the budget is {self._budget.image_px:,} px. "
                "Make it smaller or raise MediaBudget.image_px."
            )
        if container.duration is not None and container.duration / 1e6 > self._budget.video_s:
            raise self._too_long(container.duration / 1e6)

    def _too_long(self, seconds: float) -> BudgetError:
        return BudgetError(
            f"{self.name} is {seconds:,.1f} s long; the budget is {self._budget.video_s:,.1f} s. "
            "Cut it or raise MediaBudget.video_s."
        )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError:  # its text is not passed on: it speaks of buffers and addresses
            raise MediaError(f"{self.name} is damaged, cut off, or not a video.") from None


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise MissingExtraError(
            "videos are read by PyAV, which the extra foveal[video] brings: pip install 'foveal[video]'. "
            "A list of frames needs no extra."
        ) from None
    return av
