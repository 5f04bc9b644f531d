"""Plain shapes in named colours, drawn in code: the only things whose colour is asked for."""

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from foveal.core.shapes import UInt8

SHAPES = ("circle", "square", "triangle", "heart")

COLOURS: dict[str, tuple[float, float, float, float, float, float]] = {
    "red": (-0.02, 0.02, 0.75, 1.0, 0.7, 1.0),
    "orange": (0.065, 0.095, 0.85, 1.0, 0.88, 1.0),
    "yellow": (0.14, 0.17, 0.75, 1.0, 0.88, 1.0),
    "green": (0.27, 0.39, 0.6, 1.0, 0.4, 0.8),
    "blue": (0.57, 0.65, 0.7, 1.0, 0.6, 1.0),
    "purple": (0.74, 0.80, 0.55, 0.95, 0.5, 0.9),
    "pink": (0.88, 0.94, 0.3, 0.55, 0.92, 1.0),
    "brown": (0.04, 0.08, 0.6, 0.85, 0.3, 0.5),
    "black": (0.0, 1.0, 0.0, 0.2, 0.0, 0.13),
    "white": (0.0, 1.0, 0.0, 0.04, 0.94, 1.0),
}
"""Colour name -> lowest and highest hue, saturation and value, each of 0..1 (hue may pass 0)."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A drawn shape: what it is, the name of its colour, and its pixels."""

    name: str
    colour: str
    rgba: UInt8[np.ndarray, "H W 4"]


def colour_value(random: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """A red-green-blue value, 0 to 255, within the range that `colour` names."""
    h0, h1, s0, s1, v0, v1 = COLOURS[colour]
    hue, saturation, value = random.uniform(h0, h1) % 1.0, random.uniform(s0, s1), random.uniform(v0, v1)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _outline(name: str) -> list[tuple[float, float]]:
    """The shape's corners in a unit square."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    if name == "circle":
        x, y = 0.5 + 0.5 * np.cos(turn), 0.5 + 0.5 * np.sin(turn)
    elif name == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        x, y = (x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y)
    elif name == "square":
        x, y = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0, 1.0])
    else:
        x, y = np.array([0.5, 1.0, 0.0]), np.array([0.0, 1.0, 1.0])
    return list(zip(x.tolist(), y.tolist(), strict=True))


def draw_shape(random: np.random.Generator, name: str, colour: str, side_px: int = 112) -> Shape:
    """Draws shape `name` in a tint of `colour`: flat or shaded, with or without a dark or light rim."""
    scale = 2
    side = side_px * scale
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    rim = int(random.integers(2, 5)) * scale if random.random() < 0.4 else 0
    inner = side - 1 - 2 * rim
    points = [(rim + x * inner, rim + y * inner) for x, y in _outline(name)]
    fill = colour_value(random, colour)
    if rim:
        edge = (40, 40, 40) if random.random() < 0.6 and colour != "black" else (235, 235, 235)
        pen.line([*points, points[0], points[1]], fill=(*edge, 255), width=2 * rim, joint="curve")
    pen.polygon(points, fill=(*fill, 255))
    rgba = np.array(canvas.resize((side_px, side_px), Image.Resampling.BOX))
    if random.random() < 0.4 and colour not in ("black", "white"):
        shade = np.linspace(1.1, 0.85, side_px, dtype=np.float32)[:, None, None]
        rgba[..., :3] = np.clip(rgba[..., :3] * shade, 0, 255).astype(np.uint8)
    return Shape(name=name, colour=colour, rgba=rgba)
