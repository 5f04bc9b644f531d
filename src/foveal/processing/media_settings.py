"""Sizes, colours and limits of media, from a published folder: `read_media_settings`.

    preprocessor_config.json          images    (in processor_config.json since transformers 5)
    video_preprocessor_config.json    videos, where there is one

A setting that would change results and is not supported is an error; a field that changes nothing is passed over.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, neighbours
from foveal.processing.patches import Normalize
from foveal.processing.resize import PatchGrid
from foveal.processing.video import Frames

_READ = {
    "min_pixels",
    "max_pixels",
    "size",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "image_mean",
    "image_std",
}
_READ_VIDEO = {"fps", "min_frames", "max_frames", "max_video_tokens"}
_ONLY: dict[str, tuple[Any, ...]] = {
    "do_resize": (True, None),
    "do_rescale": (True, None),
    "do_normalize": (True, None),
    "do_convert_rgb": (True, None),
    "do_center_crop": (False, None),
    "do_pad": (False, None),
    "crop_size": (None,),
    "pad_size": (None,),
    "resample": (3, None),
    "rescale_factor": (1 / 255, None),
    "data_format": ("channels_first", None),
    "input_data_format": (None,),
    "cap_pixels_per_frame": (True, False, None),
    "num_frames": (None,),
}
"""Settings that are supported with one value only. The cap on pixels of each frame of a video is always on, as
published, but for families whose limits hold for the whole video: there the file says whether it is."""
_HARMLESS = {
    "image_processor_type", "video_processor_type", "feature_extractor_type", "processor_class", "auto_map",
    "return_tensors", "device", "disable_grouping", "default_to_square", "do_sample_frames", "return_metadata",
    "video_metadata", "_valid_kwargs_names", "model_valid_processing_keys",
}  # fmt: skip
VIDEO_SHARE = 0.9
"""Of the context that `max_video_tokens` states, a video may take this part (qwen-vl-utils)."""
_MAKERS = ("Qwen2VL", "Qwen2_5_VL", "Qwen2_5VL", "Qwen3VL")


def read_media_settings(folder: Path, resize: PatchGrid, video: Frames) -> tuple[PatchGrid, Normalize, Frames]:
    """Sizes and colours of images and limits of videos, as `read_folder` gives them; no tokenizer is read."""
    both = _json_if_there(folder / "processor_config.json") or {}

    def found(name: str, section: str) -> tuple[dict[str, Any] | None, str]:
        own = _json_if_there(folder / name)
        nested = both.get(section)
        if own is None and isinstance(nested, dict):
            return nested, f"{folder / 'processor_config.json'}: {section}"
        return own, str(folder / name)

    image, where = found("preprocessor_config.json", "image_processor")
    if image is None:
        image = read_json(folder / "preprocessor_config.json")  # raises, naming the file
    grid, normalize = read_image_settings(image, resize, where)
    moving, where = found("video_preprocessor_config.json", "video_processor")
    if moving is not None:
        video = read_video_settings(moving, video, grid, normalize, where)
    return grid, normalize, video


def read_image_settings(values: Mapping[str, Any], family: PatchGrid, where: str) -> tuple[PatchGrid, Normalize]:
    """Sizes and colours from a `preprocessor_config.json`; what it leaves out is the family's."""
    _check_keys(values, _READ, where)
    low, high = _areas(values, where)
    patch, merge, temporal = (_whole(values, k, where) for k in ("patch_size", "merge_size", "temporal_patch_size"))
    try:
        grid = replace(
            family,
            patch=patch or family.patch,
            merge=merge or family.merge,
            temporal=temporal or family.temporal,
            min_px=low or family.min_px,
            max_px=high or family.max_px,
        )
        return grid, Normalize(mean=_triple(values, "image_mean", where), std=_triple(values, "image_std", where))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_video_settings(
    values: Mapping[str, Any], family: Frames, grid: PatchGrid, normalize: Normalize, where: str
) -> Frames:
    """Limits of video frames from a `video_preprocessor_config.json`.

    `size` bounds one frame, or the whole video for families that bound that (`Frames.volume_px`).
    Limits that equal those of images say nothing, unless `cap_pixels_per_frame` is on: for a checkpoint without
    this file transformers fills it from the settings of images. The family's hold then, as in the published
    pipeline. Patches and colours must be those of images: the model has one tower for both.
    """
    _check_keys(values, _READ | _READ_VIDEO, where)
    low, high = _areas(values, where)
    own = {"patch_size": grid.patch, "merge_size": grid.merge, "temporal_patch_size": grid.temporal}
    for key, expected in own.items():
        if values.get(key) not in (None, expected):
            raise ConfigError(f"{where}: {key}={values[key]}, but images have {expected}; one tower reads both.")
    for key, expected_triple in (("image_mean", normalize.mean), ("image_std", normalize.std)):
        if values.get(key) is not None and _triple(values, key, where) != expected_triple:
            raise ConfigError(f"{where}: {key}={values[key]}, but images have {expected_triple}; make them agree.")
    if (low, high) == (grid.min_px, grid.max_px) and not values.get("cap_pixels_per_frame"):
        low = high = None
    fps, tokens = values.get("fps"), _whole(values, "max_video_tokens", where)
    try:
        if family.volume_px is not None:
            return replace(
                family,
                fps=family.fps if fps is None else float(fps),
                min_frames=_whole(values, "min_frames", where) or family.min_frames,
                max_frames=_whole(values, "max_frames", where) or family.max_frames,
                frame_max_px=tokens * grid.factor**2 if tokens else family.frame_max_px,
                volume_px=(low or family.volume_px[0], high or family.volume_px[1]),
                capped=bool(values.get("cap_pixels_per_frame")),
            )
        return replace(
            family,
            fps=family.fps if fps is None else float(fps),
            min_frames=_whole(values, "min_frames", where) or family.min_frames,
            max_frames=_whole(values, "max_frames", where) or family.max_frames,
            frame_min_px=low or family.frame_min_px,
            frame_max_px=high or family.frame_max_px,
            total_px=int(tokens * grid.factor**2 * VIDEO_SHARE) if tokens else family.total_px,
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_keys(values: Mapping[str, Any], read: set[str], where: str) -> None:
    known = read | _ONLY.keys() | _HARMLESS
    for key, value in values.items():
        if key not in known:
            if value is None:
                continue  # nothing is asked for
            raise ConfigError(
                f"{where}: unknown setting {key!r}={value!r}, which may change what the model sees; "
                f"{neighbours(key, known)} Remove it if it does not matter."
            )
        allowed = _ONLY.get(key)
        close = isinstance(value, float) and allowed is not None and any(
            isinstance(a, float) and math.isclose(a, value, rel_tol=1e-9) for a in allowed
        )  # fmt: skip
        if allowed is not None and value not in allowed and not close:
            raise ConfigError(f"{where}: {key}={value!r} is not supported; expected {allowed[0]!r}.")
    maker = values.get("image_processor_type") or values.get("video_processor_type")
    if maker is not None and not str(maker).startswith(_MAKERS):
        raise ConfigError(f"{where} is of {maker!r}; expected the processor of a Qwen-VL checkpoint (2 to 3).")


def _areas(values: Mapping[str, Any], where: str) -> tuple[int | None, int | None]:
    """Smallest and largest area in pixels. `size` states areas, whatever its keys say."""
    size = values.get("size") or {}
    known = ("shortest_edge", "longest_edge", "min_pixels", "max_pixels")
    if not isinstance(size, Mapping) or any(k not in known and v is not None for k, v in size.items()):
        raise ConfigError(f"{where}: size={size!r}; expected 'shortest_edge' and 'longest_edge', both areas in pixels.")
    found = []
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        found.append(_whole(values, name, where) or _whole(size, edge, where) or _whole(size, name, where))
    return found[0], found[1]


def _whole(values: Mapping[str, Any], key: str, where: str) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ConfigError(f"{where}: {key}={value!r}; expected a whole number above 0.")
    return int(value)


def _triple(values: Mapping[str, Any], key: str, where: str) -> tuple[float, float, float]:
    value = values.get(key)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise ConfigError(f"{where}: {key}={value!r}; expected three numbers, for red, green and blue.")
    return float(value[0]), float(value[1]), float(value[2])


def _json_if_there(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
