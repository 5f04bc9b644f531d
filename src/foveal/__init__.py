"""Foveal runs, trains, evaluates and serves the Qwen-VL line of vision-language models.

The names below are the public interface; they are imported when first used, so `import foveal` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.core.box import Box, ImageView, Point, Space
    from foveal.core.errors import FovealError
    from foveal.core.media import MediaBudget
    from foveal.core.packed import Medium, Packed, join
    from foveal.engine.answer import Answer, Usage
    from foveal.engine.classifier import Classifier, Guess
    from foveal.engine.dual import Dual, Match
    from foveal.engine.engine import Engine
    from foveal.engine.load import load
    from foveal.engine.model import Model
    from foveal.engine.options import EngineOptions
    from foveal.engine.request import Constraint, Event, Sampling
    from foveal.engine.stats import EngineStats
    from foveal.processing.document import Document, Element, read_document

__version__ = "0.1.0"

_HOME = {
    "Answer": "engine.answer",
    "Box": "core.box",
    "Classifier": "engine.classifier",
    "Constraint": "engine.request",
    "Document": "processing.document",
    "Dual": "engine.dual",
    "Element": "processing.document",
    "Engine": "engine.engine",
    "EngineOptions": "engine.options",
    "EngineStats": "engine.stats",
    "Event": "engine.request",
    "FovealError": "core.errors",
    "Guess": "engine.classifier",
    "ImageView": "core.box",
    "Match": "engine.dual",
    "MediaBudget": "core.media",
    "Medium": "core.packed",
    "Model": "engine.model",
    "Packed": "core.packed",
    "Point": "core.box",
    "Sampling": "engine.request",
    "Space": "core.box",
    "Usage": "engine.answer",
    "join": "core.packed",
    "load": "engine.load",
    "read_document": "processing.document",
}

__all__ = [
    "Answer",
    "Box",
    "Classifier",
    "Constraint",
    "Document",
    "Dual",
    "Element",
    "Engine",
    "EngineOptions",
    "EngineStats",
    "Event",
    "FovealError",
    "Guess",
    "ImageView",
    "Match",
    "MediaBudget",
    "Medium",
    "Model",
    "Packed",
    "Point",
    "Sampling",
    "Space",
    "Usage",
    "__version__",
    "join",
    "load",
    "read_document",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"foveal.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
