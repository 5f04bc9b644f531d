"""Transparent pictures of named things, some of them kept for tests.

`names.json` lists the things (English, plural, Chinese) and, for each picture package, what the package calls
them. A `SpriteSet` holds the pictures themselves. For every name the picture of one source is held out of training,
so that a test scene shows a picture that was never trained on.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from foveal.core.errors import ConfigError, InputError, neighbours
from foveal.core.shapes import UInt8

ARTISTS = {
    "3d": "microsoft",
    "colour": "microsoft",
    "flat": "microsoft",
    "noto": "google",
    "noto-v1": "google",
    "twemoji": "twitter",
    "emojione": "emojione",
    "fx": "mozilla",
    "streamline": "streamline",
}
"""Who drew the pictures of each source."""

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Name:
    """What a thing is called, and what each picture package calls it.

    Attributes:
        code: Unicode code point(s) of the emoji, in hexadecimal.
        name: one or two English words.
        plural: English plural.
        chinese: Chinese name.
        pictures: source -> names of its pictures there.
    """

    code: str
    name: str
    plural: str
    chinese: str
    pictures: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One transparent picture, cut to what is visible of it.

    Attributes:
        name: English name of the thing.
        source: the picture package it is from; a key of `ARTISTS`.
        title: the picture's name in that package.
        rgba: pixels [height, width, 4]; the longer side is the set's `side_px`.
    """

    name: str
    source: str
    title: str
    rgba: UInt8[np.ndarray, "H W 4"]

    @property
    def artist(self) -> str:
        return ARTISTS[self.source]


def read_names() -> tuple[Name, ...]:
    """All names that `data/names.json` lists, in its order."""
    text = files("foveal.data").joinpath("names.json").read_text(encoding="utf-8")
    return tuple(Name(**row) for row in json.loads(text))


RENDERED = ("3d", "noto", "noto-v1")
"""Sources that tests are made of where a name has one: their artists drew it again, in another way, for another."""


def held_out_source(name: str, sources: Iterable[str], seed: int = 0) -> str:
    """The source whose picture of `name` is for tests only: chosen by a hash, so it never moves.

    Raises `InputError` when there are fewer than two sources, since nothing would be left to train on.
    """
    known = sorted(set(sources))
    if len(known) < 2:
        raise InputError(f"{name!r} has pictures from {known}; a split needs at least two sources.")
    chosen = [source for source in known if source in RENDERED] or known
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return chosen[int.from_bytes(digest[:8], "big") % len(chosen)]


def trim(rgba: UInt8[np.ndarray, "H W 4"], threshold: int = 32) -> UInt8[np.ndarray, "h w 4"]:
    """Cuts away the rows and columns in which nothing is more opaque than `threshold` of 255."""
    solid = rgba[..., 3] > threshold
    if not solid.any():
        raise InputError(f"a picture of {rgba.shape[1]}x{rgba.shape[0]} px is transparent everywhere.")
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class SpriteSet:
    """Pictures by name and split. Immutable; build it from sprites or `load` it from a file."""

    def __init__(self, sprites: Sequence[Sprite], seed: int = 0) -> None:
        if not sprites:
            raise InputError("a SpriteSet needs at least one picture.")
        self.sprites = tuple(sprites)
        self._by: dict[str, dict[str, list[Sprite]]] = {split: {} for split in SPLITS}
        sources: dict[str, set[str]] = {}
        for sprite in self.sprites:
            sources.setdefault(sprite.name, set()).add(sprite.source)
        self.held_out = {name: held_out_source(name, group, seed) for name, group in sources.items()}
        """Name -> the source whose pictures of it are never trained on."""
        for sprite in self.sprites:
            split = "test" if sprite.source == self.held_out[sprite.name] else "train"
            self._by[split].setdefault(sprite.name, []).append(sprite)
        self.names = tuple(sorted(sources))
        """Every name, in alphabetical order."""

    def pictures(self, name: str, split: str) -> list[Sprite]:
        """The pictures of `name` that belong to `split` ("train" or "test")."""
        if split not in self._by:
            raise InputError(f"unknown split {split!r}; {neighbours(split, SPLITS)}")
        try:
            return self._by[split][name]
        except KeyError:
            raise InputError(f"no picture of {name!r}; {neighbours(name, self.names)}") from None

    def save(self, path: Path) -> None:
        """Writes all pictures to one `.npz` file (pixels end to end, and their records as JSON)."""
        records = [
            {"name": s.name, "source": s.source, "title": s.title, "shape": s.rgba.shape[:2]} for s in self.sprites
        ]
        pixels = np.concatenate([s.rgba.reshape(-1, 4) for s in self.sprites])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part.npz")
        np.savez_compressed(part, pixels=pixels, records=np.array(json.dumps(records)))
        part.replace(path)

    @classmethod
    def load(cls, path: Path, seed: int = 0) -> "SpriteSet":
        """Reads what `save` wrote. Raises `ConfigError` that says how to make the file."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                pixels, records = stored["pixels"], json.loads(str(stored["records"]))
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist; `python recipes/nano/0_assets.py` makes it.") from None
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path} is no picture file of Foveal: {error}") from None
        sprites, at = [], 0
        for record in records:
            height, width = record.pop("shape")
            sprites.append(Sprite(**record, rgba=pixels[at : at + height * width].reshape(height, width, 4)))
            at += height * width
        return cls(sprites, seed)
