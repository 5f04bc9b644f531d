"""Curves of a run as a PNG: one chart a figure, all stages end to end. Drawn with Pillow."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from foveal.core.errors import InputError
from foveal.train.checkpoint import read_rows

WIDTH_PX, HEIGHT_PX, LEFT_PX, EDGE_PX = 900, 260, 90, 40
FIGURES = ("loss", "norm", "rate", "tokens_per_s")
INK, GRID, LINE, BORDER = (40, 40, 40), (225, 225, 225), (30, 90, 200), (150, 150, 150)


def curves(folder: Path, stages: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Points (steps since the run began, value) of every figure that the logs of these stages hold.

    Raises `InputError` where nothing was logged.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    first = 0.0
    for stage in stages:
        rows = read_rows(folder / stage / "log.jsonl")
        for row in rows:
            own = row.get("evaluation")
            named = own if isinstance(own, Mapping) else {name: row.get(name) for name in FIGURES}
            for name, value in named.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    points.setdefault(str(name), []).append((first + float(str(row["step"])), float(value)))
        first += max((float(str(row["step"])) for row in rows), default=0.0)
    if not points:
        raise InputError(f"{folder} holds no log of {', '.join(stages)}; train first.")
    return points


def plot(points: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Draws every figure below the other and writes a PNG."""
    image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX * len(points)), "white")
    pen = ImageDraw.Draw(image)
    for number, (name, row) in enumerate(points.items()):
        _chart(pen, HEIGHT_PX * number, name, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def _chart(pen: ImageDraw.ImageDraw, top: int, name: str, points: Sequence[tuple[float, float]]) -> None:
    left, right, high, low = LEFT_PX, WIDTH_PX - EDGE_PX, top + EDGE_PX, top + HEIGHT_PX - EDGE_PX
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x0, x1 = min(0.0, *xs), max(xs)
    y0, y1 = min(ys), max(ys)
    if y0 == y1:
        y0, y1 = y0 - 0.5, y1 + 0.5

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / ((x1 - x0) or 1) * (right - left), low - (y - y0) / (y1 - y0) * (low - high)

    pen.text((left, top + 14), f"{name}: last {points[-1][1]:.4g}", fill=INK)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        pen.line((*at(x0, y), *at(x1, y)), fill=GRID)
        pen.text((8, at(x0, y)[1] - 6), f"{y:.4g}", fill=INK)
        pen.text((at(x, y0)[0] - 10, low + 8), f"{x:.0f}", fill=INK)
    pen.rectangle((left, high, right, low), outline=BORDER)
    if len(points) > 1:
        pen.line([at(x, y) for x, y in points], fill=LINE, width=2)
    else:
        x, y = at(*points[0])
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=LINE)
