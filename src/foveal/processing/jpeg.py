"""JPEG straight into an array, where the optional package simplejpeg is installed: `decode`; and how much smaller a
JPEG may be decoded when speed goes before exact pixels: `reduced`.

Pillow decodes with the same library (libjpeg-turbo) and the same settings, so the pixels are the same; some of the
time is saved, and a copy of the picture.

Tolerance of decoding at a smaller size, after both are brought to the size that the model sees, in levels of 0..255:
on photograph-like pictures 8 at most and 1 in the mean (12 Mpx seen at 1 Mpx: 3 and 0.4); on drawings with hard edges
every 9 pixels 42 and 4.7.
"""

import numpy as np

from foveal.core.shapes import UInt8

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


def decode(data: bytes, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"] | None:
    """The pixels of a JPEG; None without simplejpeg, and for data that it finds any fault with: Pillow decides then.

    `size` is (width, height) as `reduced` gives it; None for the picture's own.
    """
    if simplejpeg is None:
        return None
    width, height = (0, 0) if size is None else size
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, min_width=width, min_height=height)
    except ValueError:
        return None
    return pixels


def reduced(size: tuple[int, int], least: tuple[int, int]) -> tuple[int, int]:
    """A JPEG of `size` (width, height) at a half, a quarter or an eighth, whichever is smallest and not below `least`.

    Halves are what libjpeg-turbo has vector code for.
    """
    found = size
    for part in (2, 4, 8):
        small = -(-size[0] // part), -(-size[1] // part)
        if small[0] >= least[0] and small[1] >= least[1]:
            found = small
    return found
