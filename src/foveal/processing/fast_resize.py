"""A resize several times as fast as Pillow's, by torch; opt-in, because its pixels are not quite Pillow's.

Tolerance against Pillow's antialiased bicubic, in levels of 0..255: mean at most 0.15; 1 on smooth pictures;
single pixels beside hard edges up to 16, where a side is barely scaled (overshoot is clipped at another
moment). Without AVX2 torch computes in floats and rounds, which adds 1. The tests hold these figures.
This is the only module of the room that needs torch, and it imports it when called.
"""

import numpy as np

from foveal.core.errors import MissingExtraError
from foveal.core.shapes import UInt8


def resize_fast(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "3 h w"]:
    """`pixels` at `size` (width, height), channels first. Raises `MissingExtraError` without torch."""
    try:
        import torch
        from torch.nn import functional
    except ImportError:
        raise MissingExtraError("resize='fast' needs torch; install it, or use resize='exact'.") from None
    if not pixels.flags.writeable:  # torch warns about memory that it must not write; it only reads it here
        pixels = pixels.copy()
    channels_last = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.inference_mode():
        resized = functional.interpolate(channels_last, size=size[::-1], mode="bicubic", antialias=True)
    planes: np.ndarray = resized[0].contiguous().numpy()
    return planes
