"""Frozen, keyword-only dataclasses as configuration, read from plain mappings without silent losses."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from foveal.core.errors import ConfigError, neighbours

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "configuration") -> T:
    """Builds the dataclass `cls` from `values`; nested dataclasses are built from nested mappings.

    Raises `ConfigError` for an unknown key (naming its neighbours), a missing key, or a value of
    another type than the field's.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{cls!r} is not a configuration class; pass a dataclass.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; {neighbours(key, fields)}")
    built = {}
    for name, field in fields.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {name!r} is missing; add it.")
    return typing.cast(T, cls(**built))


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_mapping(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        nested = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
        if isinstance(value, Mapping) and len(nested) == 1:
            return _convert(nested[0], value, where)  # its error says which key is wrong
        for option in options:
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where}: got {value!r}, expected {kind}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: got {value!r}, expected a list.")
        inner = [arguments[0]] * len(value) if arguments[1:] == (Ellipsis,) else list(arguments)
        if len(inner) != len(value):
            raise ConfigError(f"{where}: got {len(value)} values {value!r}, expected {len(inner)}.")
        return tuple(_convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: got {value!r}, expected one of {', '.join(map(repr, arguments))}.")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if isinstance(plain, type) and plain is not object:
        if not isinstance(value, plain) or (isinstance(value, bool) and plain is int):
            raise ConfigError(f"{where}: got {value!r} ({type(value).__name__}), expected {plain.__name__}.")
    return value


def text_of(path: Path) -> str:
    """The text of a file of a checkpoint folder; `ConfigError` when it cannot be read or is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from `path`; raises `ConfigError` that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; a checkpoint folder needs it.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON number.")
