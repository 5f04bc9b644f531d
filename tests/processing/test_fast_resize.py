"""The stated tolerance of the opt-in resize against Pillow's pixels."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from foveal.processing import resize
from foveal.processing.fast_resize import resize_fast
from foveal.processing.patches import Normalize, image_patches
from foveal.processing.resize import PatchGrid

SIZES = [
    ((640, 480), (644, 476)), ((1024, 768), (1036, 756)), ((1024, 768), (420, 308)), ((500, 333), (504, 336)),
    ((300, 900), (308, 896)), ((64, 48), (252, 196)), ((100, 700), (28, 196)), ((1000, 700), (700, 196)),
]  # fmt: skip


def smooth(width, height):
    y, x = np.mgrid[0:height, 0:width] / 37.0
    planes = [np.sin(x) + np.cos(y), np.sin(x * 0.7 + y), np.cos(x - y * 1.3)]
    return Image.fromarray(np.stack([127.5 + 60 * p for p in planes], -1).astype(np.uint8))


def hard_edges(width, height):
    blocks = np.random.default_rng(0).integers(0, 2, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8) * 255
    return Image.fromarray(np.kron(blocks, np.ones((9, 9, 1), np.uint8))[:height, :width])


def difference(picture, size):
    exact = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(int)
    fast = resize_fast(np.array(picture), size).astype(int)
    assert exact.shape == fast.shape
    return np.abs(exact - fast)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("picture", [smooth, hard_edges, noise])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_stated_tolerance(picture, before, after):
    found = difference(picture(*before), after)
    assert found.max() <= 2
    assert found.mean() <= 0.05


def test_stated_tolerance_over_200_random_sizes():
    rng = np.random.default_rng(5)
    worst = 0
    for _ in range(200):
        before = tuple(int(v) for v in rng.integers(8, 300, 2))
        after = tuple(int(v) for v in np.maximum(1, before * rng.uniform(0.3, 1.3, 2)))
        worst = max(worst, difference(hard_edges(*before), after).max())
    assert 0 < worst <= 2


def test_patches_by_the_fast_way_without_the_c_module(monkeypatch):
    monkeypatch.setattr(resize, "resize_exact", lambda *_: None)
    grid = PatchGrid()
    normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    exact, _, shape = image_patches(smooth(320, 240), grid=grid, normalize=normalize)
    fast, _, fast_shape = image_patches(smooth(320, 240), grid=grid, normalize=normalize, resize="fast")
    assert shape == fast_shape
    assert 0 < np.abs(exact - fast).max() <= 4 / 255 + 1e-6  # two levels, 127.5 of them a unit


def test_processing_imports_no_torch():
    rooms = "image, media, patches, resize, video, video_file, fast_resize"
    code = f"import sys; from foveal.processing import {rooms}; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
