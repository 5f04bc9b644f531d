"""Backgrounds made in code: plain, gradients, stripes, checks, blobs and cloudy noise."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from foveal.core.shapes import Float32, UInt8

Random = np.random.Generator


def _enlarged(grid: Float32[np.ndarray, "h w c"], side_px: int) -> Float32[np.ndarray, "S S c"]:
    planes = [
        np.asarray(Image.fromarray(grid[..., c]).resize((side_px, side_px), Image.Resampling.BICUBIC))
        for c in range(grid.shape[2])
    ]
    return np.stack(planes, -1)


def _colours(random: Random, count: int) -> Float32[np.ndarray, "count 3"]:
    return random.uniform(0, 255, (count, 3)).astype(np.float32)


def _ramp(random: Random, side_px: int) -> Float32[np.ndarray, "S S"]:
    """A ramp from 0 to 1 in a random direction."""
    angle = random.uniform(0, 2 * np.pi)
    line = np.linspace(-0.5, 0.5, side_px, dtype=np.float32)
    ramp = np.cos(angle) * line[None] + np.sin(angle) * line[:, None]
    return (ramp - ramp.min()) / np.ptp(ramp)


def plain(random: Random, side_px: int) -> Float32[np.ndarray, "S S 3"]:
    return np.broadcast_to(_colours(random, 1)[0], (side_px, side_px, 3)).copy()


def gradient(random: Random, side_px: int) -> Float32[np.ndarray, "S S 3"]:
    ramp, (a, b) = _ramp(random, side_px)[..., None], _colours(random, 2)
    return a + (b - a) * ramp


def stripes(random: Random, side_px: int) -> Float32[np.ndarray, "S S 3"]:
    """Soft or hard stripes of two near colours."""
    a = _colours(random, 1)[0]
    b = np.clip(a + random.uniform(-90, 90, 3), 0, 255).astype(np.float32)
    wave = np.sin(_ramp(random, side_px) * random.uniform(15, 90)) * random.uniform(1, 8)
    return a + (b - a) * (np.clip(wave, -1, 1)[..., None] + 1) / 2


def checks(random: Random, side_px: int) -> Float32[np.ndarray, "S S 3"]:
    """A board of two near colours."""
    cell = int(random.integers(10, 60))
    line = (np.arange(side_px) + random.integers(0, cell)) // cell % 2
    a = _colours(random, 1)[0]
    b = np.clip(a + random.uniform(-70, 70, 3), 0, 255).astype(np.float32)
    return np.where(((line[None] + line[:, None]) % 2 == 0)[..., None], a, b).astype(np.float32)


def clouds(random: Random, side_px: int) -> Float32[np.ndarray, "S S 3"]:
    """Noise of several sizes, coloured along a line between two colours: leaves, walls, sky, grass."""
    total = np.zeros((side_px, side_px, 1), np.float32)
    rough = random.uniform(0.35, 0.8)
    for octave in range(int(random.integers(2, 7))):
        cells = 2 ** (octave + 1) + 1
        total += rough**octave * _enlarged(random.standard_normal((cells, cells, 1)).astype(np.float32), side_px)
    a, b = _colours(random, 2)
    return a + (b - a) * (1 / (1 + np.exp(-1.5 * total)))


def blobs(random: Random, side_px: int) -> Float32[np.ndarray, "S S 3"]:
    """A few out-of-focus patches of colour."""
    cells = int(random.integers(2, 7))
    return np.clip(_enlarged(_colours(random, cells * cells).reshape(cells, cells, 3), side_px), 0, 255)


def horizon(random: Random, side_px: int) -> Float32[np.ndarray, "S S 3"]:
    """A ground and a sky (or a table and a wall)."""
    top, bottom = (KINDS[int(random.integers(0, 6))](random, side_px) for _ in range(2))
    edge = int(random.uniform(0.3, 0.8) * side_px)
    return np.concatenate([top[:edge], bottom[edge:]])


KINDS: tuple[Callable[[Random, int], np.ndarray], ...] = (
    plain,
    gradient,
    stripes,
    checks,
    clouds,
    blobs,
    horizon,
    clouds,
)


def background(random: Random, side_px: int) -> UInt8[np.ndarray, "S S 3"]:
    """A random square background; half of them with fine grain."""
    picture = KINDS[int(random.integers(0, len(KINDS)))](random, side_px)
    if random.random() < 0.5:
        picture = picture + random.normal(0, random.uniform(2, 14), (side_px, side_px, 1))
    return np.clip(picture, 0, 255).astype(np.uint8)
