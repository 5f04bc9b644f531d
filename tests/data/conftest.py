"""Small pictures on disk for data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = {"a.png": (60, 40), "b.jpg": (32, 48), "c.webp": (50, 50)}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pictures of noise over a slope."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        slope = np.add.outer(np.linspace(0, 150, height), np.linspace(0, 60, width))[..., None]
        Image.fromarray((slope + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)).save(folder / name)
    return folder
