"""Random pictures of 20 odd sizes."""

import numpy as np
from PIL import Image

SIZES = (
    (1, 1), (1, 50), (7, 3), (13, 29), (17, 17), (31, 64), (40, 23), (47, 101), (53, 8), (64, 64),
    (65, 63), (77, 5), (97, 31), (100, 100), (113, 57), (127, 255), (190, 33), (224, 224), (301, 97), (333, 500),
)  # fmt: skip


def odd_pictures(seed: int = 0) -> list[Image.Image]:
    """One picture of each size, noise over a slope, so that filters and rounding show."""
    rng = np.random.default_rng(seed)
    made = []
    for width, height in SIZES:
        slope = np.add.outer(np.linspace(0, 160, height), np.linspace(0, 60, width))[..., None]
        noise = rng.integers(0, 36, (height, width, 3))
        made.append(Image.fromarray((slope + noise).astype(np.uint8)))
    return made
