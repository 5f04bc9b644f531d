"""Fingerprints of pictures and texts, and finding those that are nearly the same without comparing all pairs."""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveal.core.shapes import UInt8

NEAR_BITS = 4
"""Bits of 64 in which two nearly equal pictures may differ."""
NEAR_GREY = 8.0
"""Mean difference of their 8 x 8 thumbnails, of 255, up to which such pictures are taken for the same."""
_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
"""One band more than bits that may differ: at least one of them is equal in both (pigeonhole)."""


@dataclass(frozen=True, kw_only=True)
class Print:
    """What is kept of a picture: whether each of 8 x 8 places is darker than its right neighbour, as 64 bits, and its
    thumbnail [8, 8, 3] as bytes, which tells flat pictures apart."""

    bits: int
    thumb: bytes

    @property
    def pixels(self) -> UInt8[np.ndarray, "192"]:
        return np.frombuffer(self.thumb, np.uint8)


def print_of(picture: Image.Image) -> Print:
    """The print of an upright RGB picture. Sizes and moderate compression leave it nearly as it is."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX, reducing_gap=None), np.int16)
    # A step of less than a grey level is noise: flat places are 0 whatever a coder does to them.
    darker = (grey[:, 1:] - grey[:, :-1]) > 1
    bits = int.from_bytes(np.packbits(darker).tobytes(), "big")
    thumb = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), np.uint8)
    return Print(bits=bits, thumb=thumb.tobytes())


def near(a: Print, b: Print) -> bool:
    """Whether two pictures are taken for the same."""
    if (a.bits ^ b.bits).bit_count() > NEAR_BITS:
        return False
    return float(np.abs(a.pixels.astype(np.int16) - b.pixels.astype(np.int16)).mean()) <= NEAR_GREY


class NearIndex:
    """Prints by bands of their bits: only those that share a band are compared, a whole bucket at once."""

    def __init__(self) -> None:
        self._bands: list[dict[int, tuple[array[int], array[int]]]] = [{} for _ in _BANDS]
        self._exact: dict[Print, int] = {}
        self.prints: list[Print] = []

    def add(self, value: Print) -> int:
        """The number of a print; equal prints share one."""
        if value in self._exact:
            return self._exact[value]
        number = self._exact[value] = len(self.prints)
        self.prints.append(value)
        for band, key in zip(self._bands, _keys(value.bits), strict=True):
            bits, numbers = band.setdefault(key, (array("Q"), array("Q")))
            bits.append(value.bits)
            numbers.append(number)
        return number

    def like(self, value: Print) -> list[int]:
        """Numbers of all prints that are near to `value`, the equal one first."""
        first = [self._exact[value]] if value in self._exact else []
        found: set[int] = set()
        for band, key in zip(self._bands, _keys(value.bits), strict=True):
            if key in band:
                bits, numbers = band[key]
                apart = np.bitwise_count(np.frombuffer(bits, np.uint64) ^ np.uint64(value.bits))
                found.update(numbers[int(i)] for i in np.flatnonzero(apart <= NEAR_BITS))
        return first + [n for n in sorted(found) if n not in first and near(self.prints[n], value)]


def _keys(bits: int) -> Iterator[int]:
    for start, width in _BANDS:
        yield (bits >> start) & ((1 << width) - 1)


def text_print(text: str, more: Sequence[str] = ()) -> bytes:
    """Equal for texts that differ in case, punctuation and spaces only."""
    plain = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return hashlib.blake2b("\0".join([plain, *more]).encode(), digest_size=16).digest()
