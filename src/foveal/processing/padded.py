"""Pictures that keep their ratio inside a padded square, at one size or at two (DeepSeek-VL).

    picture 200 x 77  ──resize──▶  1024 x 394  ──pad──▶  1024 x 1024 ──▶ patches of the large picture
                                                              └──resize──▶ 384 x 384 ──▶ patches of the small one

There are two published ways, which differ in the last bits. DeepSeek's own code rounds sides down and makes the small
picture from the floating-point values of the large one (bilinear, with antialias). transformers rounds sides to the
nearest number and makes it from the 8-bit picture; its processor normalises both, DeepSeek's leaves that to the towers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveal.core.box import ImageView
from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.core.packed import Medium
from foveal.core.shapes import Float32
from foveal.processing.intake import Knobs, Opened, VideoShape
from foveal.processing.media import describe, open_image
from foveal.processing.messages import ImagePart, VideoPart
from foveal.processing.padded_settings import Settings, read_if_there
from foveal.processing.patches import CLIP_COLOURS, Normalize
from foveal.processing.square import FILTERS, FIXED

LOW = "low"
"""Name in `Packed.extra` of the patches of the small pictures."""

BICUBIC = 3


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One size of a picture.

    Attributes:
        side_px, patch: sides of the square and of its patches in pixels.
        colours: mean and deviation; the means times 255, rounded down, colour the padding.
        normalize: whether processing normalises with them.
        resample: Pillow's number of the filter.
    """

    side_px: int
    patch: int
    colours: Normalize
    normalize: bool = True
    resample: int = BICUBIC

    def __post_init__(self) -> None:
        if self.resample not in FILTERS:
            raise ConfigError(f"resample is {self.resample}; expected one of {sorted(FILTERS)} (Pillow's filters).")

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.side_px // self.patch

    @property
    def padding(self) -> tuple[int, int, int]:
        red, green, blue = (int(mean * 255) for mean in self.colours.mean)
        return red, green, blue

    def values(self, pixels: np.ndarray) -> Float32[np.ndarray, "H W 3"]:
        """8-bit pixels as numbers from 0 to 1, normalised where processing does so."""
        values: np.ndarray = (pixels * (1 / 255)).astype(np.float32)
        if self.normalize:
            values = (values - np.array(self.colours.mean, np.float32)) / np.array(self.colours.std, np.float32)
        return values

    def rows(self, values: Float32[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "P C"]:
        """Patches row by row, each flattened in the order (channel, row, column)."""
        side, patch = self.side, self.patch
        cut = values[: side * patch, : side * patch].reshape(side, patch, side, patch, 3).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(cut).reshape(side**2, 3 * patch**2)


@dataclass(frozen=True, kw_only=True)
class PaddedSquare:
    """The `Vision` of DeepSeek-VL.

    Attributes:
        first: the size that `Packed.patches` holds: the large one where there are two.
        small: the other, in `Packed.extra["low"]`.
        tokens: visual tokens of a picture.
        original: DeepSeek's own way; else transformers'.
        least_px: the shortest that a side may get.
    """

    first: Sight
    small: Sight | None
    tokens: int
    original: bool
    least_px: int = 14

    @property
    def patch_values(self) -> int:
        return 3 * self.first.patch**2

    @property
    def extra_values(self) -> int:
        """Numbers of a picture beside its patches: those of the small size."""
        return 0 if self.small is None else 3 * self.small.side**2 * self.small.patch**2

    def pixel_range(self, *, images: bool, videos: bool) -> tuple[int, int] | None:
        return None

    def read(self, folder: Path) -> "PaddedSquare":
        """Settings of preprocessor_config.json (or the `image_processor` of processor_config.json)."""
        overall = read_if_there(folder / "processor_config.json")
        nested = overall.get("image_processor")
        image = read_if_there(folder / "preprocessor_config.json") or (nested if isinstance(nested, Mapping) else {})
        where = f"{folder}: processor settings"
        stated = overall.get("num_image_tokens", self.tokens)
        if stated != self.tokens:
            raise ConfigError(
                f"{where}: num_image_tokens is {stated}, but config.json describes a model that gives {self.tokens} "
                "for a picture; take both files from one model."
            )
        if overall.get("add_special_token"):
            raise ConfigError(
                f"{where}: add_special_token is on; only prompts without it are written. Set it to false."
            )
        if overall.get("sft_format", "deepseek") != "deepseek":
            raise ConfigError(f"{where}: sft_format is {overall['sft_format']!r}; only 'deepseek' is written.")
        return (self._read_original if self.original else self._read_port)(Settings(image, where))

    def _read_original(self, found: Settings) -> "PaddedSquare":
        first = replace(
            self.first,
            side_px=found.side("image_size", self.first.side_px),
            colours=found.colours("image_mean", "image_std", self.first.colours),
            normalize=bool(found.get("do_normalize", True)),
        )
        found.require("background_color", list(first.padding))
        least = found.whole("min_size", 14)
        found.finish()
        return replace(self, first=first, least_px=least)

    def _read_port(self, found: Settings) -> "PaddedSquare":
        for key in ("do_resize", "do_rescale", "do_normalize", "do_pad"):
            found.require(key, True, None)
        low = self.small or self.first
        low = replace(
            low,
            side_px=found.side("size", low.side_px),
            colours=found.colours("image_mean", "image_std", CLIP_COLOURS),
            resample=found.whole("resample", BICUBIC),
        )
        found.require("background_color", list(low.padding))
        least = found.whole("min_size", 14)
        if self.small is None:
            found.finish()
            return replace(self, first=low, least_px=least)
        high = replace(
            self.first,
            side_px=found.side("high_res_size", self.first.side_px),
            colours=found.colours("high_res_image_mean", "high_res_image_std", CLIP_COLOURS),
            resample=found.whole("high_res_resample", BICUBIC),
        )
        found.require("high_res_background_color", list(high.padding))
        found.finish()
        return replace(self, first=high, small=low, least_px=least)

    def files(self) -> dict[str, dict[str, Any]]:
        """preprocessor_config.json and processor_config.json."""
        first, small = self.first, self.small
        shared = {"min_size": self.least_px, "rescale_factor": 1 / 255}
        if self.original:
            image = {
                "background_color": list(first.padding),
                "do_normalize": first.normalize,
                **_written(first, ""),
                "image_processor_type": "VLMImageProcessor",
                "image_size": first.side_px,
                "processor_class": "VLChatProcessor",
                **shared,
            }
            overall = {
                "add_special_token": False,
                "ignore_id": -100,
                "image_tag": "<image_placeholder>",
                "mask_prompt": True,
                "num_image_tokens": self.tokens,
                "processor_class": "VLChatProcessor",
                "sft_format": "deepseek",
            }
            return {"preprocessor_config.json": image, "processor_config.json": overall}
        low = small or first
        name = "DeepseekVL" if small is None else "DeepseekVLHybrid"
        image = {
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            **_written(low, ""),
            "image_processor_type": f"{name}ImageProcessor",
            "processor_class": f"{name}Processor",
            "resample": low.resample,
            "size": {"height": low.side_px, "width": low.side_px},
            **shared,
        }
        if small is not None:
            image |= _written(first, "high_res_")
            image |= {
                "high_res_resample": first.resample,
                "high_res_size": {"height": first.side_px, "width": first.side_px},
            }
        overall = {"num_image_tokens": self.tokens, "processor_class": f"{name}Processor"}
        return {"preprocessor_config.json": image, "processor_config.json": overall}

    def open(
        self, part: ImagePart | VideoPart, *, budget: MediaBudget, knobs: Knobs, count: int, patches: bool = True
    ) -> Opened:
        """See `Vision.open`. Raises `InputError` for videos and for settings of size, which have no effect here."""
        name = describe(part.source)
        if isinstance(part, VideoPart):
            raise InputError(f"{name} is a video, but this family sees images only; pass single frames.")
        knobs.refuse(("min_pixels", "max_pixels", "fps", "nframes", "max_frames"), FIXED)
        for key in ("min_pixels", "max_pixels", "resized"):
            if getattr(part, key) is not None:
                raise InputError(f"{name}: {key}={getattr(part, key)}: {FIXED}; leave it out.")
        picture = open_image(part.source, budget=budget)
        medium = self._medium(picture.size, name)
        if not patches:
            low = {} if self.small is None else {LOW: np.zeros((0, 3 * self.small.patch**2), np.float32)}
            return Opened(medium=medium, patches=np.zeros((0, self.patch_values), np.float32), extra=low)
        square = self.padded(picture)
        values = self.first.values(np.asarray(square))
        if self.small is None:
            return Opened(medium=medium, patches=self.first.rows(values))
        low_rows = self.small.rows(self.low_values(square, values))
        return Opened(medium=medium, patches=self.first.rows(values), extra={LOW: low_rows})

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Sides of the picture inside the square."""
        side, longest = self.first.side_px, max(width, height)
        if self.original:
            across, down = (int(n / longest * side) for n in (width, height))
        else:
            across, down = (round(n * (side / longest)) for n in (width, height))
        return max(across, self.least_px), max(down, self.least_px)

    def padded(self, picture: Image.Image) -> Image.Image:
        """The square that `first` sees of an RGB picture, which lies in its middle."""
        size, side = self.fitted(*picture.size), self.first.side_px
        if size != picture.size:
            picture = picture.resize(size, FILTERS[self.first.resample])
        if size == (side, side):
            return picture
        square = Image.new("RGB", (max(size), max(size)), self.first.padding)
        square.paste(picture, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
        return square

    def low_values(self, square: Image.Image, values: Float32[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H2 W2 3"]:
        """What the small size sees of a padded square: from its `values`, or from its 8-bit pixels."""
        small = self.small
        if small is None:
            raise InputError("this model sees pictures at one size only; there is no small one.")
        if self.original:
            return antialiased(values, small.side_px)
        side = (small.side_px, small.side_px)
        return small.values(np.asarray(square.resize(side, FILTERS[small.resample])))

    def measure_image(self, width: int, height: int, *, knobs: Knobs, count: int) -> Medium:
        knobs.refuse(("min_pixels", "max_pixels"), FIXED)
        return self._medium((width, height), f"{width} x {height} px")

    def measure_video(self, video: VideoShape, *, knobs: Knobs, count: int) -> Medium:
        raise InputError(f"a video of {video.seconds:g} s, but this family sees images only; pass single frames.")

    def cells(self, medium: Medium) -> tuple[int, int, int]:
        return 1, 1, medium.tokens

    def pixels_for(self, tokens: int) -> int | None:
        return None

    def _medium(self, original: tuple[int, int], source: str) -> Medium:
        view = ImageView(original=original, processed=self.fitted(*original))
        grid = (1, self.first.side, self.first.side)
        return Medium(kind="image", sequence=0, view=view, grid=grid, tokens=self.tokens, source=source)


def antialiased(values: Float32[np.ndarray, "H W 3"], side: int) -> Float32[np.ndarray, "S S 3"]:
    """Floating-point pixels at side x side: bilinear with antialias, as torchvision resizes tensors.

    Along each axis a result is the mean of its neighbours under a triangle that is as wide as the scale, at least
    one pixel, to each side of the result's centre. Centres are rounded to float32 as there: at the far side of a large
    picture that is a difference of 1e-4 pixels.
    """

    def weights(length: int) -> np.ndarray:
        scale = np.float32(length) / np.float32(side)
        reach = max(scale, np.float32(1))
        centres = scale * (np.arange(side, dtype=np.float32) + np.float32(0.5))
        first = np.maximum((centres - reach + np.float32(0.5)).astype(np.int64), 0)
        offset = first.astype(np.float32) - centres
        within = np.arange(length) - first[:, None]
        distance = (within.astype(np.float32) + offset[:, None]).astype(np.float64) + 0.5
        triangle = np.where(within < 0, 0.0, np.maximum(0.0, 1.0 - np.abs(distance / reach)))
        return triangle / triangle.sum(axis=1, keepdims=True)

    down, across = weights(values.shape[0]), weights(values.shape[1])
    planes = down @ values.transpose(2, 0, 1).astype(np.float64) @ across.T
    return np.ascontiguousarray(planes.transpose(1, 2, 0), dtype=np.float32)


def _written(sight: Sight, prefix: str) -> dict[str, Any]:
    return {f"{prefix}image_mean": list(sight.colours.mean), f"{prefix}image_std": list(sight.colours.std)}
