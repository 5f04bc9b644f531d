"""Augmentation of pictures whose boxes and points follow: flip, crop, resize, jitter of colours.

Pictures are upright 8-bit RGB. An operation is a map of places, x' = a x + b and y' = c y + d in pixels, so one rule
moves boxes, quadrilaterals and points alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageEnhance

from foveal.core.box import Box, ImageView, Point, Space
from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.data.sample import Sample
from foveal.processing.media import open_image

SIDES = re.compile(
    r"\b(?:left|right|leftmost|rightmost|clockwise|counterclockwise|anticlockwise)(?:-|\b)|[左右]", re.IGNORECASE
)
"""Words that a flip would make wrong."""

Op: TypeAlias = "Flip | Crop | Resize | Jitter"


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Where places go: x' = `scale`[0] x + `shift`[0], y' = `scale`[1] y + `shift`[1], in a picture of `size`."""

    scale: tuple[float, float]
    shift: tuple[float, float]
    size: tuple[int, int]

    def places(self, values: Sequence[float]) -> tuple[float, ...]:
        """Pairs x, y, x, y, ... moved; nothing is cut at the edges."""
        return tuple(v * self.scale[i % 2] + self.shift[i % 2] for i, v in enumerate(values))


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Left to right."""

    def map(self, size: tuple[int, int]) -> Affine:
        """x' = width - x."""
        return Affine(scale=(-1.0, 1.0), shift=(float(size[0]), 0.0), size=size)

    def apply(self, picture: Image.Image) -> Image.Image:
        """The changed picture."""
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The part of a picture from `left`, `top` with `width` and `height`, in pixels."""

    left: int
    top: int
    width: int
    height: int

    def map(self, size: tuple[int, int]) -> Affine:
        """A shift. Raises `InputError` for a crop that passes the edge."""
        inside = 0 <= self.left <= size[0] - self.width and 0 <= self.top <= size[1] - self.height
        if not inside or self.width < 1 or self.height < 1:
            raise InputError(f"{self} passes the edge of a picture of {size[0]} x {size[1]} pixels.")
        return Affine(scale=(1.0, 1.0), shift=(-float(self.left), -float(self.top)), size=(self.width, self.height))

    def apply(self, picture: Image.Image) -> Image.Image:
        """The changed picture."""
        return picture.crop((self.left, self.top, self.left + self.width, self.top + self.height))


@dataclass(frozen=True, kw_only=True)
class Resize:
    """To `width` x `height` pixels, bicubic."""

    width: int
    height: int

    def map(self, size: tuple[int, int]) -> Affine:
        """A scale. Raises `InputError` for a side of no pixel."""
        if self.width < 1 or self.height < 1:
            raise InputError(f"{self}: both sides must be at least 1 pixel.")
        return Affine(
            scale=(self.width / size[0], self.height / size[1]), shift=(0.0, 0.0), size=(self.width, self.height)
        )

    def apply(self, picture: Image.Image) -> Image.Image:
        """The changed picture."""
        return picture.resize((self.width, self.height), Image.Resampling.BICUBIC)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Brightness, contrast and saturation times these factors. Places stay."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    def map(self, size: tuple[int, int]) -> Affine:
        """Nothing moves."""
        return Affine(scale=(1.0, 1.0), shift=(0.0, 0.0), size=size)

    def apply(self, picture: Image.Image) -> Image.Image:
        """The changed picture."""
        for kind, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            if factor != 1.0:
                picture = kind(picture).enhance(factor)
        return picture


def moved_box(box: Box, op: Op, size: tuple[int, int]) -> Box | None:
    """Where a box of a picture of `size` is after `op`, in the units it has; None when nothing of it is left.

    A box that is cut gets the flag "clipped". The points of a quadrilateral keep their turning direction: after a
    flip they begin with what was the second.
    """
    change, values = op.map(size), _pixels(box, size)
    placed = change.places(values)
    if box.points and change.scale[0] < 0:
        pairs = [placed[i : i + 2] for i in (2, 0, 6, 4)]
        placed = tuple(v for pair in pairs for v in pair)
    xs, ys = placed[::2], placed[1::2]
    view = ImageView(original=change.size, processed=change.size)
    if box.points:
        made = Box.quadrilateral(box.label, placed, Space.ORIGINAL_PX, view, box.image)
    else:
        made = Box.mended(box.label, (min(xs), min(ys), max(xs), max(ys)), Space.ORIGINAL_PX, view, box.image)
    if "empty" in made.flags and box.area > 0:
        return None
    return replace(made.to(box.space, view), flags=tuple(dict.fromkeys((*box.flags, *made.flags))))


def moved_point(point: Point, op: Op, size: tuple[int, int]) -> Point | None:
    """As `moved_box` for a point; None when it is cut off."""
    change = op.map(size)
    view = ImageView(original=size, processed=size)
    x, y = change.places(point.to(Space.ORIGINAL_PX, view).place if _is_relative(point.space) else point.place)
    if not (0 <= x <= change.size[0] and 0 <= y <= change.size[1]):
        return None
    after = ImageView(original=change.size, processed=change.size)
    return replace(point, place=(x, y), space=Space.ORIGINAL_PX).to(point.space, after)


def _pixels(box: Box, size: tuple[int, int]) -> tuple[float, ...]:
    if box.space is Space.PROCESSED_PX:
        raise InputError(
            f"box {box.label!r} counts pixels of the resized picture; augmentation needs those of the file."
        )
    found = box.to(Space.ORIGINAL_PX, ImageView(original=size, processed=size))
    return found.points or found.corners


def _is_relative(space: Space) -> bool:
    return space in (Space.RELATIVE_1000, Space.RELATIVE_999)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is drawn for every picture of a sample, in this order: crop, resize, flip, jitter.

    Attributes:
        flip: share of pictures that are turned left to right.
        sides: what becomes of a flip when the sample says left or right (`SIDES`): "keep" leaves it unflipped,
            "refuse" is an `InputError`.
        crop: (smallest, largest) share of the area that is kept; None for no crop.
        square: a square of the shorter side is kept, from anywhere along the longer one (CLIP, section 2.5); instead
            of `crop`.
        keep: share of each box that a crop must leave; crops that leave less are drawn again, ten times, then none
            is made. 1 keeps all boxes whole.
        resize: (smallest, largest) factor of both sides; None for none.
        jitter: brightness, contrast and saturation are multiplied with factors in 1 - jitter to 1 + jitter.
    """

    flip: float = 0.0
    sides: str = "keep"
    crop: tuple[float, float] | None = None
    square: bool = False
    keep: float = 1.0
    resize: tuple[float, float] | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"Augmentation.flip is {self.flip}; expected a share from 0 to 1.")
        if self.sides not in ("keep", "refuse"):
            raise ConfigError(f"Augmentation.sides is {self.sides!r}; expected 'keep' or 'refuse'.")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ConfigError(f"Augmentation.crop is {self.crop}; expected shares of the area, 0 < low <= high <= 1.")
        if self.crop is not None and self.square:
            raise ConfigError("Augmentation has both crop and square; a picture is cut once, so drop one of them.")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"Augmentation.keep is {self.keep}; expected a share above 0, at most 1.")
        if self.resize is not None and not 0 < self.resize[0] <= self.resize[1]:
            raise ConfigError(f"Augmentation.resize is {self.resize}; expected factors, 0 < low <= high.")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"Augmentation.jitter is {self.jitter}; expected 0 to below 1.")

    def draw(
        self, random: np.random.Generator, size: tuple[int, int], boxes: Sequence[Box], *, sided: bool = False
    ) -> list[Op]:
        """Operations for one picture of `size`; `sided` says that its sample speaks of left or right."""
        ops: list[Op] = []
        if (crop := self._crop(random, size, boxes)) is not None:
            ops.append(crop)
            size = (crop.width, crop.height)
        if self.resize is not None:
            factor = random.uniform(*self.resize)
            ops.append(Resize(width=max(1, round(size[0] * factor)), height=max(1, round(size[1] * factor))))
        if random.random() < self.flip and not sided:
            ops.append(Flip())
        if self.jitter:
            low, high = 1 - self.jitter, 1 + self.jitter
            brightness, contrast, saturation = (float(random.uniform(low, high)) for _ in range(3))
            ops.append(Jitter(brightness=brightness, contrast=contrast, saturation=saturation))
        return ops

    def _crop(self, random: np.random.Generator, size: tuple[int, int], boxes: Sequence[Box]) -> Crop | None:
        if self.crop is None and not (self.square and size[0] != size[1]):
            return None
        for _ in range(10):
            width = height = min(size)
            if self.crop is not None:
                area, ratio = random.uniform(*self.crop), np.exp(random.uniform(-0.25, 0.25))
                width = int(np.clip(round(size[0] * np.sqrt(area) * ratio), 1, size[0]))
                height = int(np.clip(round(size[1] * np.sqrt(area) / ratio), 1, size[1]))
            left, top = int(random.integers(size[0] - width + 1)), int(random.integers(size[1] - height + 1))
            crop = Crop(left=left, top=top, width=width, height=height)
            if all(_left(box, crop, size) >= self.keep - 1e-9 for box in boxes):
                return crop
        return None

    def sample(self, sample: Sample, random: np.random.Generator, budget: MediaBudget | None = None) -> Sample:
        """The sample with its pictures opened and changed, and its boxes where they are then. Videos stay.

        Draw from `np.random.default_rng([seed, n])` for sample number n, so that nothing has to be remembered.
        """
        sided = bool(self.flip) and SIDES.search(sample.text) is not None
        if sided and self.sides == "refuse":
            raise InputError(
                f"{sample} says left or right, which a flip would make wrong; use sides='keep' or flip=0 for its set."
            )
        chains: dict[int, tuple[list[Op], Image.Image, tuple[int, int]]] = {}
        for number, part in enumerate(sample.media):
            if part["type"] == "image":
                try:
                    picture = open_image(part["image"], budget=budget or MediaBudget())
                except InputError as error:
                    raise type(error)(f"{sample}: {error}") from None
                size = picture.size
                ops = self.draw(random, size, [b for b in sample.boxes if b.image == number], sided=sided)
                for op in ops:
                    picture = op.apply(picture)
                chains[number] = (ops, picture, size)
        return _changed(sample, chains)


def _left(box: Box, crop: Crop, size: tuple[int, int]) -> float:
    """The share of a box's area that a crop leaves."""
    found = box.to(Space.ORIGINAL_PX, ImageView(original=size, processed=size))
    frame = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    width = max(0.0, min(found.corners[2], frame[2]) - max(found.corners[0], frame[0]))
    height = max(0.0, min(found.corners[3], frame[3]) - max(found.corners[1], frame[1]))
    return width * height / found.area if found.area else float(width > 0 or height > 0)


def _changed(sample: Sample, chains: Mapping[int, tuple[list[Op], Image.Image, tuple[int, int]]]) -> Sample:
    def place(box: Box) -> Box:
        ops, _, size = chains[box.image]
        for op in ops:
            moved = moved_box(box, op, size)
            if moved is None:
                raise InputError(f"{sample}: box {box.label!r} passes the edge of its picture; the doctor mends sets.")
            box, size = moved, op.map(size).size
        return box

    messages, number = [], -1
    for message in sample.messages:
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] in ("image", "video"):
                number += 1
                parts.append({**part, "image": chains[number][1]} if number in chains else part)
            elif part["type"] == "box" and part["box"].image in chains:
                parts.append({"type": "box", "box": place(part["box"])})
            else:
                parts.append(part)
        messages.append({"role": message["role"], "content": parts})
    return replace(sample, messages=tuple(messages))
