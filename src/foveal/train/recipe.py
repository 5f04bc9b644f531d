"""Recipes: Python files with a function `run` that returns a `Run`, and settings of the command line.

    foveal train recipes/qwen_vl/1_align.py --set size=tiny train.rate=1e-4 align.steps=100

A setting is an argument of the function (`size`), a setting of the run (`folder`, `workers`), or, with a dot, one of a
stage (`align.steps`) or of all (`train.rate`).
"""

import dataclasses
import importlib.util
import inspect
import json
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from foveal.core.config import from_mapping
from foveal.core.errors import ConfigError, neighbours
from foveal.train.run import SETTINGS, Origin, Run
from foveal.train.stage import Stage


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Run:
    """The run of a recipe's file with settings "NAME=VALUE"; values are JSON, or else words.

    Raises:
        ConfigError: the file is no recipe, or a setting is unknown (its neighbours are named) or of another type.
    """
    path = Path(path)
    make = _function(path)
    arguments = dict(inspect.signature(make).parameters)
    hints = typing.get_type_hints(make)
    own: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: expected NAME=VALUE, such as train.rate=1e-4.")
        if name in arguments:
            own[name] = _value(text, hints.get(name))
        else:
            others[name] = _value(text)
    known = [*arguments, *SETTINGS]
    names = [*(f.name for f in dataclasses.fields(Stage)), "rate"]
    for name in others:  # before the recipe itself complains of what a misspelt setting left out
        if "." not in name and name not in known:
            dotted = [f"train.{field}" for field in names]
            raise ConfigError(f"--set {name}: unknown; {neighbours(name, [*known, *dotted])}")
    fields = [
        (n, hints.get(n, object), dataclasses.field(default=None if p.default is p.empty else p.default))
        for n, p in arguments.items()
    ]
    checked: Any = from_mapping(dataclasses.make_dataclass("Arguments", fields, kw_only=True), own, f"{path.name}: run")
    made = make(**{name: getattr(checked, name) for name in own})
    if not isinstance(made, Run):
        raise ConfigError(f"{path}: run() gave a {type(made).__name__}; it must return a foveal.train.run.Run.")
    origin = Origin(recipe=str(path), settings=tuple(settings))
    return replace(made.changed(others), origin=origin)


def _function(path: Path) -> Callable[..., Any]:
    """The function `run` of a recipe's file; its folder can be imported from, as when it is a script."""
    if not path.is_file():
        raise ConfigError(f"{path} is no file; name a recipe such as recipes/qwen_vl/1_align.py.")
    if path.suffix != ".py":
        raise ConfigError(f"{path} is no Python file; a recipe is one, with a function run() that returns a Run.")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported.")
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # worker processes and dataclasses look functions up by their module
    spec.loader.exec_module(module)
    make = getattr(module, "run", None)
    if not callable(make):
        raise ConfigError(f"{path} has no function run(); a recipe defines one that returns a Run.")
    return typing.cast(Callable[..., Any], make)


def _value(text: str, kind: Any = None) -> Any:
    if kind is str:
        return text
    if kind is Path:
        return Path(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
