"""Named intermediate results of a forward pass, kept on request."""

from collections.abc import Iterable

from torch import Tensor

from foveal.core.errors import InputError, neighbours


class Keep:
    """Collects the results whose names were asked for.

    A forward pass offers each result by name; `finish` raises `InputError` if a wanted name never came.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise InputError(f"keep is {names!r}; expected a list of names.")
        self.wanted = frozenset(map(str, names))
        self.kept: dict[str, Tensor] = {}
        self._offered: list[str] = []

    def offer(self, name: str, value: Tensor) -> None:
        """Keeps `value` if somebody asked for `name`."""
        if self.wanted:
            self._offered.append(name)
            if name in self.wanted:
                self.kept[name] = value

    def finish(self) -> dict[str, Tensor]:
        for name in sorted(self.wanted - set(self.kept)):
            raise InputError(f"keep: the forward pass has no result named {name!r}; {neighbours(name, self._offered)}")
        return self.kept
