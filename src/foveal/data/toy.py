"""Toy data sets of drawn shapes: every picture and answer is a function of the sample's number, nothing is fetched.

They show that a recipe learns, on a machine with two cores and in minutes; they measure nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from foveal.core.box import Box, Space
from foveal.core.errors import InputError, neighbours
from foveal.data.sample import Sample
from foveal.data.source import checked

PAINTS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 200, 40),
}
FORMS = ("circle", "square")
NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A shape in a toy picture: its name ("red circle") and its corners in pixels."""

    name: str
    corners: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A picture with things of different names in it."""

    image: Image.Image
    things: tuple[Thing, ...]


def draw(number: int, *, side_px: int = 56, most: int = 2, seed: int = 0) -> Toy:
    """Picture number `number`: one to `most` things of different names that do not overlap, on light grey."""
    random = np.random.default_rng([seed, number])
    image = Image.new("RGB", (side_px, side_px), (238, 238, 238))
    pen = ImageDraw.Draw(image)
    names = [f"{paint} {form}" for paint in PAINTS for form in FORMS]
    things: list[Thing] = []
    for name in random.permutation(names)[: int(random.integers(1, most + 1))]:
        for _ in range(20):
            size = int(random.integers(side_px // 4, side_px // 2 + 1))
            left, top = (int(v) for v in random.integers(0, side_px - size + 1, size=2))
            corners = (left, top, left + size, top + size)
            if all(_apart(corners, other.corners) for other in things):
                break
        else:
            break
        paint, form = str(name).split()
        inner = (left, top, left + size - 1, top + size - 1)
        (pen.ellipse if form == "circle" else pen.rectangle)(inner, fill=PAINTS[paint])
        things.append(Thing(name=str(name), corners=corners))
    return Toy(image=image, things=tuple(things))


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


Parts = list[dict[str, Any]]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _box(thing: Thing) -> dict[str, Any]:
    corners = tuple(float(v) for v in thing.corners)
    return {"type": "box", "box": Box(label=thing.name, corners=corners, space=Space.ORIGINAL_PX)}  # type: ignore[arg-type]


def _caption(toy: Toy, _: np.random.Generator) -> tuple[str, Parts]:
    return "Describe the image.", [_text(" and ".join(f"a {t.name}" for t in toy.things))]


def _vqa(toy: Toy, _: np.random.Generator) -> tuple[str, Parts]:
    return "How many things are there?", [_text(NUMBERS[len(toy.things)])]


def _find(toy: Toy, random: np.random.Generator) -> tuple[str, Parts]:
    thing = toy.things[int(random.integers(len(toy.things)))]
    return f"Where is the {thing.name}?", [_box(thing)]


def _refer(toy: Toy, random: np.random.Generator) -> tuple[str, Parts]:
    thing = toy.things[int(random.integers(len(toy.things)))]
    middle = (thing.corners[0] + thing.corners[2]) / 2
    return f"What is {'left' if middle < toy.image.width / 2 else 'right'} of the middle?", [_text(thing.name)]


def _grounded(toy: Toy, _: np.random.Generator) -> tuple[str, Parts]:
    return "Describe the image with boxes.", [_box(thing) for thing in toy.things]


def _read(toy: Toy, random: np.random.Generator) -> tuple[str, Parts]:
    word = str(int(random.integers(10)))
    ImageDraw.Draw(toy.image).text((2, 0), word, fill=(0, 0, 0), font_size=toy.image.width // 3)
    return "Read the text.", [_text(word)]


TASKS: Mapping[str, Callable[[Toy, np.random.Generator], tuple[str, Parts]]] = {
    "caption": _caption,
    "vqa": _vqa,
    "find": _find,
    "refer": _refer,
    "grounded": _grounded,
    "read": _read,
}
"""Six tasks with pictures; "text" has none."""


class ToySet:
    """Questions of one kind about drawn pictures: a `Source`.

    Args:
        task: one of `TASKS`, or "text".
        count: samples.
        side_px: side of the pictures.
        most: things in a picture at most.
        seed: another seed gives other pictures.
        name: of the set; None: that of the task.
    """

    def __init__(
        self, task: str, count: int, *, side_px: int = 56, most: int = 2, seed: int = 0, name: str | None = None
    ) -> None:
        if task not in (*TASKS, "text"):
            raise InputError(f"no toy task {task!r}; {neighbours(task, [*TASKS, 'text'])}")
        self.task, self.count, self.side_px, self.most, self.seed = task, count, side_px, most, seed
        self._name = name or f"toy-{task}"

    @property
    def name(self) -> str:
        return self._name

    def __len__(self) -> int:
        return self.count

    def toy(self, index: int) -> Toy:
        """The picture of sample number `index` as it was drawn."""
        return draw(index, side_px=self.side_px, most=self.most, seed=self.seed)

    def __getitem__(self, index: int) -> Sample:
        index = checked(index, self.count, self.name)
        random = np.random.default_rng([self.seed, index, 1])
        if self.task == "text":
            number = int(random.integers(1, 4))
            asked, said = [_text(f"What comes after {NUMBERS[number - 1]}?")], [_text(NUMBERS[number])]
        else:
            toy = self.toy(index)
            words, said = TASKS[self.task](toy, random)
            asked = [{"type": "image", "image": toy.image}, _text(words)]
        messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
        return Sample(id=str(index), messages=messages, set=self.name)
