"""`Family`: the declaration that makes a system known to Foveal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from foveal.core.errors import ConfigError, neighbours
from foveal.processing.pictures import PictureProcessing
from foveal.processing.processor import Processing

if TYPE_CHECKING:  # families are declared without torch, so that what needs no weights is quick
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Family:
    """One system: how its published files are read and written, and the parts it is built from.

    Attributes:
        name: also the name of the file in `families/` and of the map in `families/maps/`.
        reads: values of `model_type` in a published config.json that this family answers to.
        config: the family's frozen configuration dataclass.
        from_published: config.json -> configuration.
        to_published: configuration -> config.json in the official layout.
        build: configuration -> network; honours an enclosing `torch.device("meta")`.
        processing: configuration -> the family's processing declaration: conversations, or single pictures.
        parameters: configuration -> numbers that each part learns, by the part's name.
        sizes: configurations of the released models by name, and "tiny" for tests.
        context: configuration -> tokens that fit into the model's context.
        layout: configuration -> the layout in which its weights are saved; None for the official one.
        portable: configuration and processor of a model -> the same in a layout that other libraries open, for
            `convert`; tensors that it has no place for are left out. None where every layout that is saved is one.
        guess: layout and shapes of all tensors -> configuration, for files that carry none; None where that cannot be.
    """

    name: str
    reads: tuple[str, ...]
    config: type
    from_published: Callable[[Mapping[str, Any]], Any]
    to_published: Callable[[Any], dict[str, Any]]
    build: "Callable[[Any], nn.Module]"
    processing: Callable[[Any], Processing | PictureProcessing]
    parameters: Callable[[Any], Mapping[str, int]]
    sizes: Mapping[str, Any]
    context: Callable[[Any], int]
    layout: Callable[[Any], str | None] = lambda _: None
    guess: Callable[[str | None, Mapping[str, tuple[int, ...]]], Any] | None = None
    portable: Callable[[Any, Any], tuple[Any, Any]] | None = None

    def map_file(self, layout: str | None = None) -> str:
        """Name of the file with a name map: NAME.map for the official layout, NAME.LAYOUT.map for another one."""
        return f"{self.name}.map" if layout is None else f"{self.name}.{layout}.map"

    def map_text(self, layout: str | None = None) -> str:
        """The name map of this family, published names to ours."""
        return (resources.files("foveal.families") / "maps" / self.map_file(layout)).read_text(encoding="utf-8")

    def layouts(self) -> list[str | None]:
        """Layouts that are read: the official one (None), then the others by name."""
        files = (path.name for path in (resources.files("foveal.families") / "maps").iterdir())
        parts = [name.split(".") for name in sorted(files)]
        return [None, *(p[1] for p in parts if len(p) == 3 and p[0] == self.name and p[2] == "map")]

    def size(self, name: str) -> Any:
        """The configuration of a released size; raises `ConfigError` that names the known ones."""
        if name not in self.sizes:
            raise ConfigError(f"{self.name} has no size {name!r}; {neighbours(name, self.sizes)}")
        return self.sizes[name]
