"""Media at their own size (Qwen2-VL and after): any picture as a grid of patches, videos as stacks of frames."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveal.core.box import ImageView
from foveal.core.media import MediaBudget
from foveal.core.packed import Medium
from foveal.processing.intake import Knobs, Opened, VideoShape
from foveal.processing.media import describe, open_pixels
from foveal.processing.media_settings import VIDEO_SHARE, read_media_settings
from foveal.processing.messages import ImagePart, VideoPart
from foveal.processing.patches import Normalize, image_patches, video_patches
from foveal.processing.resize import PatchGrid, resized
from foveal.processing.sampling import Frames, frame_size, plan_sampling
from foveal.processing.video import open_video


@dataclass(frozen=True, kw_only=True)
class NativeSize:
    """The `Vision` of Qwen2-VL: sizes, colours, and how videos are sampled.

    `makers` are the (image, video, processor) class names that published files state.
    """

    resize: PatchGrid
    normalize: Normalize
    video: Frames
    makers: tuple[str, str, str] = ("Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", "Qwen2VLProcessor")

    @property
    def patch_values(self) -> int:
        return 3 * self.resize.temporal * self.resize.patch**2

    def pixel_range(self, *, images: bool, videos: bool) -> tuple[int, int] | None:
        """From the highest floor to the highest ceiling of such media, in pixels."""
        grid, video = self.resize, self.video
        least, most = video.frame_min_px, video.frame_max_px
        if video.volume_px is not None:  # of one frame, where only a patch's frames share the whole
            least, most = 1, most if video.capped else video.volume_px[1] // grid.temporal
        lows = [grid.min_px] * images + [least] * videos
        highs = [grid.max_px] * images + [most] * videos
        return max([grid.factor**2, *lows]), max([grid.factor**2, *highs])

    def read(self, folder: Path) -> "NativeSize":
        grid, normalize, video = read_media_settings(folder, self.resize, self.video)
        return replace(self, resize=grid, normalize=normalize, video=video)

    def files(self) -> dict[str, dict[str, Any]]:
        """`preprocessor_config.json` and `video_preprocessor_config.json`."""
        grid, normalize, video = self.resize, self.normalize, self.video
        shared = {
            "patch_size": grid.patch,
            "temporal_patch_size": grid.temporal,
            "merge_size": grid.merge,
            "image_mean": list(normalize.mean),
            "image_std": list(normalize.std),
            "processor_class": self.makers[2],
        }
        image = {
            "min_pixels": grid.min_px,
            "max_pixels": grid.max_px,
            **shared,
            "image_processor_type": self.makers[0],
        }
        area = video.volume_px or (video.frame_min_px, video.frame_max_px)
        tokens = video.total_px / VIDEO_SHARE if video.volume_px is None else video.frame_max_px
        moving = {
            "size": {"shortest_edge": area[0], "longest_edge": area[1]},
            "fps": video.fps,
            "min_frames": video.min_frames,
            "max_frames": video.max_frames,
            "cap_pixels_per_frame": video.volume_px is None or video.capped,
            "max_video_tokens": round(tokens / grid.factor**2),
            **shared,
            "video_processor_type": self.makers[1],
        }
        return {"preprocessor_config.json": image, "video_preprocessor_config.json": moving}

    def open(
        self,
        part: ImagePart | VideoPart,
        *,
        budget: MediaBudget,
        knobs: Knobs,
        count: int,
        patches: bool = True,
    ) -> Opened:
        """See `Vision.open`. Raises `InputError`, `MediaError`, `BudgetError`: see `media` and `video`."""
        grid, normalize = self.resize, self.normalize
        low, high = knobs.limits(part)
        name = describe(part.source)
        rows = np.zeros((0, self.patch_values), dtype=np.float32)
        if isinstance(part, VideoPart):
            clip = open_video(
                part.source, frames=self.video, budget=budget, grid=grid, min_px=low, max_px=high,
                total_px=part.total_pixels, resize=knobs.resize, **knobs.sampling(part),
            )  # fmt: skip
            frames, height, width = clip.frames.shape[:3]
            view, shape = (
                ImageView(original=clip.source_size, processed=(width, height)),
                grid.grid(width, height, frames),
            )
            if patches:
                rows, _, shape = video_patches(clip.frames, grid=grid, normalize=normalize)
            return Opened(medium=self._medium("video", view, shape, name, clip.times_s, clip.fps), patches=rows)
        wanted = None if part.resized is None else grid.size(*part.resized, min_px=low, max_px=high)

        def fit(width: int, height: int) -> tuple[int, int]:
            return grid.size(*(wanted or (width, height)), min_px=low, max_px=high)

        picture, original = open_pixels(part.source, budget=budget, fit=fit if knobs.resize == "fast" else None)
        if wanted is not None:
            picture = resized(picture, wanted, knobs.resize)
        size = fit(*original)
        view, shape = ImageView(original=original, processed=size), grid.grid(*size)
        if patches:
            rows, _, shape = image_patches(picture, grid=grid, normalize=normalize, size=size, resize=knobs.resize)
        return Opened(medium=self._medium("image", view, shape, name), patches=rows)

    def measure_image(self, width: int, height: int, *, knobs: Knobs, count: int) -> Medium:
        size = self.resize.size(width, height, min_px=knobs.min_pixels, max_px=knobs.max_pixels)
        view = ImageView(original=(width, height), processed=size)
        return self._medium("image", view, self.resize.grid(*size), f"{width} x {height} px")

    def measure_video(self, video: VideoShape, *, knobs: Knobs, count: int) -> Medium:
        """The frames that would be taken, and their size; exact."""
        chosen, rate = plan_sampling(
            video.seconds, video.fps, self.video, fps=knobs.fps, nframes=knobs.nframes, max_frames=knobs.max_frames
        )
        limits = {"min_px": knobs.min_pixels, "max_px": knobs.max_pixels}
        size = frame_size(len(chosen), video.width, video.height, grid=self.resize, frames=self.video, **limits)
        view = ImageView(original=(video.width, video.height), processed=size)
        shape = self.resize.grid(*size, frames=len(chosen))
        times = tuple(k / video.fps for k in chosen)
        return self._medium(
            "video", view, shape, f"{video.width} x {video.height} px, {video.seconds:g} s", times, rate
        )

    def cells(self, medium: Medium) -> tuple[int, int, int]:
        t, h, w = medium.grid
        return t, h // self.resize.merge, w // self.resize.merge

    def pixels_for(self, tokens: int) -> int | None:
        return self.resize.max_px_for(tokens)

    def _medium(
        self,
        kind: str,
        view: ImageView,
        shape: tuple[int, int, int],
        source: str,
        times_s: tuple[float, ...] = (),
        fps: float = 0.0,
    ) -> Medium:
        tokens = self.resize.tokens(shape)
        return Medium(
            kind=kind, sequence=0, view=view, grid=shape, tokens=tokens, times_s=times_s, fps=fps, source=source
        )
