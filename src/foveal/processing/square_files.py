"""Squares as published folders state them: `preprocessor_config.json` of ViT, CLIP and SigLIP.

    size        224, or {"height": 224, "width": 224} (stretched), or {"shortest_edge": 224} (with a crop)
    crop_size   224, or {"height": 224, "width": 224}, where `do_center_crop` is on
    resample    Pillow's number of the filter

A setting that would change results and is not supported is an error; a field that changes nothing is passed over.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, neighbours
from foveal.processing.patches import Normalize
from foveal.processing.square import Square

_READ = {"size", "crop_size", "do_center_crop", "resample", "image_mean", "image_std"}
_ONLY: dict[str, tuple[Any, ...]] = {
    "do_resize": (True, None),
    "do_rescale": (True, None),
    "do_normalize": (True, None),
    "do_convert_rgb": (True, False, None),
    "do_pad": (False, None),
    "pad_size": (None,),
    "rescale_factor": (1 / 255, None),
    "data_format": ("channels_first", None),
    "input_data_format": (None,),
}
"""Settings that are supported with one value only. Pictures always become RGB."""
_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "return_tensors", "device",
    "disable_grouping", "default_to_square", "image_seq_length", "_valid_processor_keys",
    "model_valid_processing_keys",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PublishedSquare(Square):
    """A `Square` whose size, filter and colours a folder states; what it leaves out is the family's.

    `makers` are the (image processor, processor) class names that published files state; the second may be empty.
    """

    makers: tuple[str, str]

    def read(self, folder: Path) -> "PublishedSquare":
        """See `Vision.read`. Settings lie in preprocessor_config.json, or in processor_config.json since
        transformers 5."""
        path, both = folder / "preprocessor_config.json", folder / "processor_config.json"
        if not path.is_file() and both.is_file():
            nested = read_json(both).get("image_processor")
            if isinstance(nested, Mapping):
                return self._stated(nested, f"{both}: image_processor")
        return self._stated(read_json(path), str(path))

    def files(self) -> dict[str, dict[str, Any]]:
        """`preprocessor_config.json`."""
        square = {"height": self.side_px, "width": self.side_px}
        cut = self.fit == "crop"
        values = {
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.side_px} if cut else square,
            "resample": self.resample,
            "do_center_crop": cut or None,
            "crop_size": square if cut else None,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.normalize.mean),
            "image_std": list(self.normalize.std),
            "image_processor_type": self.makers[0],
            "processor_class": self.makers[1] or None,
        }
        return {"preprocessor_config.json": {key: value for key, value in values.items() if value is not None}}

    def _stated(self, values: Mapping[str, Any], where: str) -> "PublishedSquare":
        _check_keys(values, where)
        side, fit = self.side_px, self.fit
        cropped = values.get("do_center_crop")
        cropped = self.fit == "crop" if cropped is None else cropped
        size, crop = values.get("size"), values.get("crop_size")
        if size is not None:
            side, fit = _side(size, "size", where, self.fit)
        if cropped:
            cut, _ = (side, fit) if crop is None else _side(crop, "crop_size", where, "stretch")
            if cut != side:
                raise ConfigError(f"{where}: size={size!r} and crop_size={crop!r}; expected one side for both.")
        elif fit == "crop":
            raise ConfigError(
                f"{where}: size={size!r} without a crop gives pictures of many sizes; a square is expected."
            )
        resample = values.get("resample")
        if resample is not None and type(resample) is not int:
            raise ConfigError(f"{where}: resample is {resample!r}; expected the number of one of Pillow's filters.")
        mean, std = (_triple(values, key, where) for key in ("image_mean", "image_std"))
        try:
            return replace(
                self,
                side_px=side,
                fit=fit,
                resample=self.resample if resample is None else resample,
                normalize=Normalize(mean=mean or self.normalize.mean, std=std or self.normalize.std),
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def _side(value: Any, key: str, where: str, fit: Any) -> tuple[int, Any]:
    """The side of the square that a size states, and how pictures come to it; a bare number leaves that to `fit`."""
    if isinstance(value, Mapping):
        stated = {k: v for k, v in value.items() if v is not None}
        if stated.keys() == {"shortest_edge"}:
            value, fit = stated["shortest_edge"], "crop"
        elif stated.keys() == {"height", "width"} and stated["height"] == stated["width"]:
            value, fit = stated["height"], "stretch"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where}: {key}={value!r}; expected a whole number, or an object that states a square.")
    return value, fit


def _check_keys(values: Mapping[str, Any], where: str) -> None:
    known = _READ | _ONLY.keys() | _HARMLESS
    for key, value in values.items():
        if key not in known and value is not None:
            raise ConfigError(
                f"{where}: unknown setting {key!r}={value!r}, which may change what the model sees; "
                f"{neighbours(key, known)} Remove it if it does not matter."
            )
        allowed = _ONLY.get(key)
        if allowed is None or value in allowed:
            continue
        if not (isinstance(value, float) and any(isinstance(a, float) and math.isclose(a, value) for a in allowed)):
            raise ConfigError(f"{where}: {key}={value!r} is not supported; expected {allowed[0]!r}.")


def _triple(values: Mapping[str, Any], key: str, where: str) -> tuple[float, float, float] | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise ConfigError(f"{where}: {key}={value!r}; expected three numbers, for red, green and blue.")
    return float(value[0]), float(value[1]), float(value[2])
