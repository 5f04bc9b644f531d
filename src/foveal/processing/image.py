"""Whatever a picture is stored as, made into upright 8-bit RGB: `upright_rgb` and `from_array`.

Models of this line were trained on 8-bit RGB. Everything else is brought there here and nowhere else.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import ExifTags, Image

from foveal.core.errors import MediaError

Alpha: TypeAlias = Literal["white", "drop"]
"""What becomes of transparency: the picture is laid on white, or its colours are taken as if it were opaque."""

_WHITE = (255, 255, 255, 255)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (EXIF 2.3, tag 0x0112)."""


def upright_rgb(picture: Image.Image, name: str = "the picture", *, alpha: Alpha = "white") -> Image.Image:
    """`picture` as 8-bit RGB, turned as its EXIF orientation says.

    - Any transparency (alpha channel, transparent palette entry or colour key) lies on white, or is ignored where
      `alpha` is "drop", as the processing of Qwen-VL does.
    - 16-bit grey is scaled, 0..65535 to 0..255. The published processors cut it at 255 instead,
      which turns most such pictures white: a deliberate difference. Of 16-bit colour Pillow keeps
      the upper byte when it decodes.
    - Floating-point pictures must lie in 0..1.
    - CMYK and the like are converted by Pillow without a colour profile, as published processors do.

    The result may be `picture` itself when there is nothing to do. Raises `MediaError` where pixel values
    have no agreed meaning.
    """
    turn = _TURNS.get(orientation(picture))
    picture = _rgb(picture, name, alpha)
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info = {}  # it still says that the picture needs turning
    return turned


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none or it cannot be read."""
    try:
        value: Any = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises nearly anything; the pixels are sound all the same
        return 1
    return value if value in _TURNS else 1


def _rgb(picture: Image.Image, name: str, alpha: Alpha) -> Image.Image:
    mode = picture.mode
    if mode == "RGB" and (alpha == "drop" or "transparency" not in picture.info):
        return picture
    if mode == "F" or mode.startswith("I"):
        return _deep_grey(picture, name, alpha)
    try:
        if alpha == "drop":
            # Pillow wants palettes with alpha to go by RGBA; the colours are the same.
            between = {"RGBa": "RGBA", "La": "LA", "P": "RGBA", "PA": "RGBA"}.get(mode, mode)
            return picture.convert(between).convert("RGB")
        if mode in ("PA", "RGBa", "La") or "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("LA").convert("RGBA") if mode == "La" else picture.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", picture.size, _WHITE), picture).convert("RGB")
        return picture.convert("RGB")
    except ValueError:
        raise MediaError(f"{name} has colour mode {mode}, which is not converted; save it as RGB.") from None


def _deep_grey(picture: Image.Image, name: str, alpha: Alpha) -> Image.Image:
    """Grey with more than 8 bits: modes I;16, I;16B, I;16L, I;16N, I and F."""
    values = np.asarray(picture)
    clear = picture.info.get("transparency")
    grey = scaled(values, name)
    if isinstance(clear, int) and alpha == "white":
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def scaled(values: np.ndarray, name: str) -> np.ndarray:
    """Pixel values of any type as uint8: floats from 0..1, integers of more than 8 bits from 0..65535."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # also catches NaN
            raise MediaError(
                f"{name} has floating-point values from {values.min():g} to {values.max():g}, expected 0 to 1; "
                "scale them, or pass uint8."
            )
        return np.rint(values * 255).astype(np.uint8)
    if values.dtype.kind in "iu" and values.dtype.itemsize > 1:
        if values.min() < 0 or values.max() > 65535:
            raise MediaError(
                f"{name} has values from {values.min()} to {values.max()}, expected 16 bits, 0 to 65535; "
                "scale them, or pass uint8."
            )
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 x 257
    raise MediaError(f"{name} has values of type {values.dtype}; pass uint8, or floats from 0 to 1.")


def from_array(array: np.ndarray, name: str = "the array", *, alpha: Alpha = "white") -> Image.Image:
    """A picture from grey [H, W], grey [H, W, 1], RGB [H, W, 3] or RGBA [H, W, 4] (for `alpha` see `upright_rgb`).

    Raises `MediaError` for another shape, an empty array, or values that `scaled` does not take.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        hint = " Move the channels to the end." if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise MediaError(f"{name} has shape {array.shape}; expected [H, W], [H, W, 3] or [H, W, 4].{hint}")
    if array.size == 0:
        raise MediaError(f"{name} has shape {array.shape}: it holds no pixel.")
    return upright_rgb(Image.fromarray(np.ascontiguousarray(scaled(array, name))), name, alpha=alpha)
