"""Published settings of a picture processor, read strictly: every key is used, known to be harmless, or named."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, neighbours
from foveal.processing.patches import Normalize

log = logging.getLogger(__name__)


def read_if_there(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


_HARMLESS = frozenset(
    """_processor_class auto_map background_color crop_size data_format default_to_square device disable_grouping
    do_center_crop do_convert_rgb do_flip_channel_order do_normalize do_pad do_rescale do_resize
    high_res_background_color image_processor_type image_seq_length input_data_format model_input_names pad_size
    processor_class return_tensors""".split()
)


class Settings:
    """A published object of settings that remembers which keys were read."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self._known = set(_HARMLESS)
        scale = self.get("rescale_factor", 1 / 255)
        if not isinstance(scale, int | float) or abs(scale * 255 - 1) > 1e-6:
            raise ConfigError(f"{where}: rescale_factor is {scale!r}; only 1/255 is computed.")

    def get(self, key: str, default: Any) -> Any:
        self._known.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def require(self, key: str, *allowed: Any) -> None:
        """Refuses a value that is not computed."""
        value = self.values.get(key, allowed[0])
        value = list(value) if isinstance(value, list | tuple) else value
        if value is not None and value not in allowed:
            raise ConfigError(f"{self.where}: {key} is {value!r}; this family computes only {allowed[0]!r}.")

    def whole(self, key: str, default: int) -> int:
        """A whole number above 0."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.where}: {key} is {value!r}; a whole number above 0 is expected.")
        return value

    def side(self, key: str, wanted: int) -> int:
        """A square's side, which config.json states too; `ConfigError` where they differ."""
        value = self.get(key, wanted)
        sides = [value.get("height"), value.get("width")] if isinstance(value, Mapping) else [value]
        if any(side != wanted for side in sides):
            raise ConfigError(
                f"{self.where}: {key} is {value}, but config.json describes a tower for {wanted} x {wanted} px; "
                "take both files from one model."
            )
        return wanted

    def colours(self, mean: str, std: str, default: Normalize) -> Normalize:
        """The pair under two keys; `ConfigError` where they are not three numbers each."""
        try:
            middle, spread = (
                (float(red), float(green), float(blue))
                for red, green, blue in (self.get(mean, default.mean), self.get(std, default.std))
            )
            return Normalize(mean=middle, std=spread)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.where}: {mean} and {std} are no colours: {error}.") from None

    def finish(self) -> None:
        for key in sorted(set(self.values) - self._known):
            log.warning("%s: key %r has no effect; %s", self.where, key, neighbours(key, self._known - _HARMLESS))
