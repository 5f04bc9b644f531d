"""Reading a published config.json: every key is used, known to be harmless, or named in a warning."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from foveal.core.errors import ConfigError

log = logging.getLogger(__name__)

# Keys that describe a release or steer its authors' training and tools, and change no number of inference here.
HARMLESS = frozenset(
    """architectures attention_dropout auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id
    hidden_dropout id2label image_token_id initializer_range is_decoder is_encoder_decoder label2id layer_types
    max_window_layers model_type output_attentions output_hidden_states pad_token_id problem_type
    quantization_config return_dict sliding_window torch_dtype transformers_version use_cache video_token_id
    vision_end_token_id vision_start_token_id vision_token_id""".split()
)

_MISSING = object()


class Reader:
    """A JSON object of a published configuration that remembers which keys were read."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self._read: set[str] = set()

    def get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        return self.values.get(key, default)

    def integer(self, key: str, default: Any = _MISSING, *, zero: bool = False) -> int:
        """A whole number above 0, or with `zero` from 0; `ConfigError` names the key otherwise."""
        value = self.get(key, default)
        if value is _MISSING:
            raise ConfigError(f"{self.where}: {key!r} is missing; a whole number is expected.")
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if zero else 1):
            least = "0 or more" if zero else "above 0"
            raise ConfigError(f"{self.where}: {key} is {value!r}; a whole number {least} is expected.")
        return value

    def number(self, key: str, default: float, *, zero: bool = False) -> float:
        """A finite number above 0, or with `zero` from 0; `ConfigError` names the key otherwise."""
        value = self.get(key, default)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            least = "0 or more" if zero else "above 0"
            raise ConfigError(f"{self.where}: {key} is {value!r}; a number {least} is expected.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false; `ConfigError` names the key otherwise."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} is {value!r}; true or false is expected.")
        return value

    def word(self, key: str, default: str) -> str:
        """A text; `ConfigError` names the key otherwise."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}: {key} is {value!r}; a text is expected.")
        return value

    def integers(self, key: str, default: Sequence[int]) -> tuple[int, ...]:
        """A list of whole numbers, 0 or more each; `ConfigError` names the key otherwise."""
        value = self.get(key, default)
        if not isinstance(value, list | tuple) or not all(type(v) is int and v >= 0 for v in value):
            raise ConfigError(f"{self.where}: {key} is {value!r}; a list of whole numbers is expected.")
        return tuple(value)

    def section(self, key: str) -> "Reader | None":
        """The object under `key`, or None when it is absent."""
        value = self.get(key, None)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{self.where}: {key} is {value!r}; an object is expected.")
        return None if value is None else Reader(value, f"{self.where}: {key}")

    def need(self, key: str) -> "Reader":
        """The object under `key`; `ConfigError` when it is absent."""
        found = self.section(key)
        if found is None:
            raise ConfigError(f"{self.where}: {key!r} is missing; an object is expected.")
        return found

    def require(self, key: str, *allowed: Any) -> None:
        """Refuses a value that would change the numbers in a way this family does not compute."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            known = " or ".join(repr(a) for a in allowed)
            raise ConfigError(f"{self.where}: {key} is {value!r}; this family computes only {known}.")

    def finish(self, harmless: Iterable[str] = ()) -> None:
        """Warns of keys that nobody read, but for those of HARMLESS and of `harmless`."""
        for key in sorted(set(self.values) - self._read - HARMLESS - set(harmless)):
            if not key.startswith("_"):
                log.warning("%s: key %r is not known to Foveal and has no effect.", self.where, key)
