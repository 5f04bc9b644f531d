"""What is where in a scene, for every cell of its grid: the targets of dense supervision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveal.core.shapes import Float32, Int64
from foveal.data.scenes import CELL_PX, Scene
from foveal.data.shapes import COLOURS, SHAPES

NEAR = 0.12
"""Smallest share of a cell's pixels that an object must own to be the cell's object."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Targets of M cells, row by row, of one or several scenes end to end.

    Attributes:
        thing: class of the object seen in the cell; 0 is the background [M].
        colour: index into COLOURS, or -1 where no coloured shape is [M].
        box: left, top, right, bottom of the cell's object in 0..1 of the picture [M, 4]; NaN for background.
        place: x and y of the cell's own middle in 0..1 of the picture [M, 2].
        middle: whether an object's middle lies in the cell [M].
    """

    thing: Int64[np.ndarray, "M"]
    colour: Int64[np.ndarray, "M"]
    box: Float32[np.ndarray, "M 4"]
    place: Float32[np.ndarray, "M 2"]
    middle: Float32[np.ndarray, "M"]


def class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class index -> name; "" is the background."""
    return ("", *names, *SHAPES)


def dense_targets(scenes: Sequence[Scene], index: dict[str, int]) -> Dense:
    """Targets of several scenes, cells in the order of merged tokens (row by row)."""
    parts = [_one(scene, index) for scene in scenes]
    return Dense(**{key: np.concatenate([p[key] for p in parts]) for key in parts[0]})


def _one(scene: Scene, index: dict[str, int]) -> dict[str, np.ndarray]:
    rows, columns = scene.owners.shape[0] // CELL_PX, scene.owners.shape[1] // CELL_PX
    width, height = scene.size
    cells = scene.owners.reshape(rows, CELL_PX, columns, CELL_PX).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    count = len(scene.objects) + 1
    shares = np.stack([(cells == k).mean(1) for k in range(count)], 1)
    shares[:, 0] = NEAR
    for k in range(1, count):
        shares[int(shares[:, k].argmax()), k] += NEAR  # a tiny or hidden object still has its best cell
    owner = shares.argmax(1)
    things = np.array([0, *(index[o.name] for o in scene.objects)], np.int64)
    names = list(COLOURS)
    colours = np.array([-1, *(names.index(o.colour) if o.colour else -1 for o in scene.objects)], np.int64)
    scale = np.array([width, height, width, height], np.float32)
    boxes = np.array([(np.nan,) * 4, *(o.box for o in scene.objects)], np.float32) / scale
    y, x = np.divmod(np.arange(rows * columns), columns)
    middle = np.zeros(rows * columns, np.float32)
    for o in scene.objects:
        cx, cy = o.centre
        middle[int(cy // CELL_PX) * columns + int(cx // CELL_PX)] = 1.0
    place = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], 1).astype(np.float32)
    return {"thing": things[owner], "colour": colours[owner], "box": boxes[owner], "place": place, "middle": middle}
