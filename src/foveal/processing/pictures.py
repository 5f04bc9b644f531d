"""Input of families that hold no conversation: single pictures, and single texts beside them.

ViT takes pictures; CLIP and SigLIP take pictures and captions, each on its own. What is shared with families that
talk is the `Vision`, the budget for media, and that nothing in a text is special.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from foveal.core.errors import BudgetError, ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.core.packed import Medium
from foveal.core.shapes import Float32, Int64
from foveal.processing.intake import Knobs, Opened
from foveal.processing.messages import ImagePart
from foveal.processing.published import TEXT_FILES
from foveal.processing.square import Square


@runtime_checkable
class Captions(Protocol):
    """The vocabulary of a text tower."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text can produce."""
        ...

    def encode(self, text: str, *, truncate: bool = False) -> list[int]:
        """Ids of one text as the tower takes them: with begin and end, padded as published.

        Raises `ContextError` for a text that is too long; with `truncate`, its end is left out instead.
        """
        ...

    def files(self) -> Mapping[str, str | bytes]:
        """The vocabulary as published files, name to content."""
        ...


@dataclass(frozen=True, kw_only=True)
class PictureProcessing:
    """What a family declares that sees single pictures. A checkpoint's own files replace the settings of `vision`.

    `captions` reads the vocabulary of a folder, where there is a text tower.
    """

    vision: Square
    captions: Callable[[Path], Captions] | None = None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures end to end: patches [P, C], the grid (1, height, width) of each [N, 3], and their records."""

    patches: Float32[np.ndarray, "P C"]
    grids: Int64[np.ndarray, "N 3"]
    media: tuple[Medium, ...]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts end to end: ids [T] and boundaries [B + 1]."""

    tokens: Int64[np.ndarray, "T"]
    starts: Int64[np.ndarray, "B1"]


class PictureProcessor:
    """Pictures and captions of one checkpoint as its towers take them.

    Args:
        processing: its settings.
        captions: its vocabulary, where it has a text tower.
        files: the published files that these come from, which `files` gives back.
    """

    def __init__(
        self,
        *,
        processing: PictureProcessing,
        captions: Captions | None = None,
        files: Mapping[str, str | bytes] | None = None,
    ) -> None:
        self.processing, self._captions, self._files = processing, captions, files

    @classmethod
    def from_folder(cls, folder: Path, processing: PictureProcessing) -> "PictureProcessor":
        """Reads the processing files of a published folder. Raises `ConfigError` for what is missing or unknown."""
        captions = None if processing.captions is None else processing.captions(folder)
        files: dict[str, str | bytes] = {name: _text(folder / name) for name in TEXT_FILES if (folder / name).is_file()}
        if captions is not None:
            files |= captions.files()
        return cls(
            processing=replace(processing, vision=processing.vision.read(folder)), captions=captions, files=files
        )

    @property
    def captions(self) -> Captions:
        """The vocabulary; `ConfigError` for a family without a text tower."""
        if self._captions is None:
            raise ConfigError("this family has no text tower; it takes pictures only.")
        return self._captions

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text can produce."""
        return frozenset() if self._captions is None else self._captions.special_ids

    def published_ids(self) -> dict[str, int]:
        """Ids of special tokens that config.json would state: none."""
        return {}

    def files(self) -> dict[str, str | bytes]:
        """The processing files in the published layout, name to content."""
        if self._files is not None:
            return dict(self._files)
        settings = self.processing.vision.files()
        own: dict[str, str | bytes] = {
            name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in settings.items()
        }
        return own if self._captions is None else {**own, **self._captions.files()}

    def pictures(self, images: Any, *, budget: MediaBudget | None = None, side_px: int | None = None) -> Pictures:
        """Opens pictures: one, or a list of files, data URLs, bytes, PIL pictures and arrays.

        `side_px` is another size of square than the checkpoint's; the towers resize their position table.

        Raises:
            InputError: no picture, or a size of no whole patch; MediaError, BudgetError: a picture is damaged or too
            large.
        """
        budget = budget or MediaBudget()
        sources = self.sources(images)
        if len(sources) > budget.media:
            raise BudgetError(
                f"{len(sources)} pictures at once; the budget is {budget.media}. Pass fewer at a time or raise "
                "MediaBudget.media."
            )
        vision = self.processing.vision
        if side_px is not None:
            if side_px < vision.patch:
                raise InputError(f"side_px is {side_px}, less than one patch of {vision.patch} px; make it larger.")
            vision = vision.sized(side_px)
        knobs = Knobs()
        opened: list[Opened] = [
            vision.open(ImagePart(source=source), budget=budget, knobs=knobs, count=len(sources)) for source in sources
        ]
        return Pictures(
            patches=np.concatenate([o.patches for o in opened]),
            grids=np.array([o.medium.grid for o in opened], np.int64),
            media=tuple(replace(o.medium, sequence=n) for n, o in enumerate(opened)),
        )

    def texts(self, texts: str | Sequence[str], *, truncate: bool = False) -> Texts:
        """Tokens of captions: one, or a list. Nothing in them is special.

        Raises:
            InputError: what is no text; ContextError: a text is too long, and `truncate` does not say to cut it.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        for index, text in enumerate(several):
            if not isinstance(text, str):
                raise InputError(f"text {index} is a {type(text).__name__}; expected str.")
        ids = [self.captions.encode(text, truncate=truncate) for text in several]
        return Texts(
            tokens=np.array([i for one in ids for i in one], np.int64),
            starts=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        )

    @staticmethod
    def several(images: Any) -> bool:
        """Whether this is a list of pictures, and not one."""
        if isinstance(images, np.ndarray):
            return images.ndim == 4
        return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)

    @staticmethod
    def sources(images: Any) -> list[Any]:
        """One picture or several, as a list; `InputError` when there is none."""
        sources = list(images) if PictureProcessor.several(images) else [images]
        if not sources:
            raise InputError("there is no picture; pass at least one.")
        return sources


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
