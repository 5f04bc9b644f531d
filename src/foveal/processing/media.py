"""The one module that opens what a user names: paths, file and data URLs, bytes, pictures, arrays.

Nothing is opened without a `MediaBudget`: bytes are counted before they are read, pixels before they
are decoded. No network address is ever fetched, and only picture formats on the list below are decoded.
"""

import base64
import binascii
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from foveal.core.errors import BudgetError, FovealError, InputError, MediaError
from foveal.core.media import MediaBudget
from foveal.core.shapes import UInt8
from foveal.processing.image import Alpha, from_array, orientation, upright_rgb
from foveal.processing.jpeg import decode, reduced

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray
"""What a user may name as a picture."""

FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
_SHOWN = 96  # characters of a name in a message

# Decoders are called directly: Image.open would try every format that Pillow has, and warn about
# large pictures on its own account instead of asking the budget.
_DECODERS: tuple[tuple[bytes, Callable[[Any], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
)
_OTHERS = (
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML or SVG file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (8, b"AVI ", "an AVI video"),
    (4, b"ftypavi", "an AVIF picture"),
    (4, b"ftyphei", "a HEIC picture"),
    (4, b"ftypmif", "a HEIC picture"),
    (4, b"ftyp", "an MP4 or QuickTime video"),
    (4, b"jP  \r\n", "a JPEG 2000 picture"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)


def open_image(source: Source, *, budget: MediaBudget, alpha: Alpha = "white") -> Image.Image:
    """The picture that `source` names, decoded, upright, 8-bit RGB.

    `source` is a file path, a `file://` or `data:` URL, the bytes of a file, a PIL image, or an array
    [H, W], [H, W, 3] or [H, W, 4] of uint8, 16-bit integers or floats in 0..1. Of an animation the
    first frame is taken. See `image.upright_rgb` for what happens to unusual pixels, and for `alpha`.

    Raises `InputError` for something that cannot name a picture, `BudgetError` for one that is too
    large, `MediaError` for one that is missing, damaged or of another format.
    """
    name = describe(source)
    if isinstance(source, Image.Image):
        _check_area(source.width, source.height, name, budget)
        return upright_rgb(_decoded(lambda: source, name, budget), name, alpha=alpha)
    if isinstance(source, np.ndarray):
        if source.ndim >= 2:
            _check_area(source.shape[1], source.shape[0], name, budget)
        return from_array(source, name, alpha=alpha)
    with open_bytes(source, budget=budget) as stream:
        decoder = _decoder(stream, name)
        return upright_rgb(_decoded(lambda: decoder(stream), name, budget), name, alpha=alpha)


def open_pixels(
    source: Source, *, budget: MediaBudget, fit: Callable[[int, int], tuple[int, int]] | None = None
) -> tuple[Image.Image | UInt8[np.ndarray, "_ _ 3"], tuple[int, int]]:
    """As `open_image`, with transparency on white; and the size (width, height) that the picture has.

    A JPEG comes as an array where simplejpeg is installed: the same pixels, sooner. With `fit`, which says at which
    size the model sees a picture of a given size, a JPEG may come smaller than it is, but not below that size.
    """
    if isinstance(source, Image.Image | np.ndarray):
        picture = open_image(source, budget=budget)
        return picture, picture.size
    name = describe(source)
    with open_bytes(source, budget=budget) as stream:
        decoder = _decoder(stream, name)
        is_jpeg = decoder is JpegImageFile
        if not is_jpeg:
            picture = upright_rgb(_decoded(lambda: decoder(stream), name, budget), name)
            return picture, picture.size
        header = _decoded(lambda: decoder(stream), name, budget, load=False)
        turn, stored = orientation(header), header.size
        size = stored[::-1] if turn >= 5 else stored
        smaller = None
        if fit is not None:
            least = fit(*size)
            smaller = reduced(stored, least[::-1] if turn >= 5 else least)
        if header.mode == "RGB" and turn == 1:
            stream.seek(0)
            pixels = decode(stream.read(), smaller)
            if pixels is not None:
                return pixels, size
        stream.seek(0)

        def begin() -> Image.Image:
            picture = decoder(stream)
            if smaller is not None:
                picture.draft(picture.mode, smaller)
            return picture

        return upright_rgb(_decoded(begin, name, budget), name), size


def image_size(source: Source, *, budget: MediaBudget) -> tuple[tuple[int, int], int]:
    """Width and height of the picture once it is upright, and its EXIF orientation (1: it is stored upright).

    Read from the header; the pixels stay packed. Raises as `open_image` does, but for damage behind the header.
    """
    name = describe(source)

    def measured(picture: Image.Image) -> tuple[tuple[int, int], int]:
        turn = orientation(picture)
        width, height = picture.size
        return ((height, width) if turn >= 5 else (width, height)), turn

    if isinstance(source, Image.Image):
        return measured(source)
    if isinstance(source, np.ndarray):
        return measured(from_array(source, name))
    with open_bytes(source, budget=budget) as stream:
        decoder = _decoder(stream, name)
        return measured(_decoded(lambda: decoder(stream), name, budget, load=False))


@contextmanager
def open_bytes(source: Any, *, budget: MediaBudget) -> Iterator[io.BufferedIOBase]:
    """The encoded file that `source` (path, URL or bytes) names, as a seekable stream within the budget.

    Raises `InputError`, `BudgetError` or `MediaError` as `open_image` does.
    """
    name = describe(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        source = _data_url(source, name, budget)
    if isinstance(source, bytes | bytearray | memoryview):
        size = memoryview(source).nbytes
        _check_bytes(size, name, budget)
        if not size:
            raise MediaError(f"{name} is empty (0 bytes).")
        yield io.BytesIO(bytes(source))  # copies only what is not bytes already
        return
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"{name} cannot name a picture or video; pass a path, a file:// or data: URL, bytes, "
            "a PIL image or an array."
        )
    path = _path(source, name)
    try:
        status = path.stat()  # before opening: opening a pipe would wait for its writer
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(f"{name} is a folder; name a file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{name} is a device or pipe; name a regular file.")
        _check_bytes(status.st_size, name, budget)
        if not status.st_size:
            raise MediaError(f"{name} is empty (0 bytes).")
        stream = path.open("rb")
    except FileNotFoundError:
        raise MediaError(f"{name} does not exist; check the path.") from None
    except OSError as error:
        raise MediaError(f"{name} cannot be opened: {error.strerror}.") from None
    with stream:
        yield stream


def describe(source: Any) -> str:
    """A short, printable name of `source` for messages: no content, no query of a URL, no control characters."""
    if isinstance(source, Image.Image):
        return f"PIL image ({source.mode}, {source.width} x {source.height})"
    if isinstance(source, np.ndarray):
        return f"array ({source.dtype}, {' x '.join(map(str, source.shape))})"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{memoryview(source).nbytes:,} bytes"
    if isinstance(source, list | tuple):
        return f"list of {len(source)} frames"
    if not isinstance(source, str | os.PathLike):
        return f"an object of type {type(source).__name__}"
    text = str(source)
    if text[:5].lower() == "data:":
        kind = text[5 : 5 + _SHOWN].partition(",")[0].partition(";")[0]
        return f"data URL ({_printable(kind) or 'no type'}, {len(text):,} characters)"
    if "://" in text[:16]:
        text = text.partition("?")[0].partition("#")[0]
        scheme, _, rest = text.partition("://")
        host, slash, tail = rest.partition("/")
        text = f"{scheme}://{host.rpartition('@')[2]}{slash}{tail}"  # neither query nor password
    return f"'{_printable(text)}'"


def _printable(text: str) -> str:
    if len(text) > _SHOWN:
        text = text[: _SHOWN // 3] + "…" + text[-(_SHOWN - _SHOWN // 3 - 1) :]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _path(source: str | os.PathLike[str], name: str) -> Path:
    text = os.fspath(source)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text.strip():
        raise InputError("an empty name was given as a picture or video; pass a path.")
    if "\0" in text:
        raise InputError(f"{name} holds a zero character; it cannot be a path.")
    scheme = text.split("://")[0].lower() if "://" in text[:16] else ""
    if scheme in ("http", "https", "ftp", "s3", "gs"):
        raise InputError(f"{name} is a remote address; remote media are off here. Download the file and pass its path.")
    if scheme and scheme != "file":
        raise InputError(f"{name} has an unknown scheme; pass a path, a file:// or a data: URL.")
    if scheme:
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{name} names a file on another machine; write file:///path, with three slashes.")
        text = unquote(parts.path)
        if os.name == "nt":
            text = text.lstrip("/")
        if not text or "\0" in text:
            raise InputError(f"{name} names no file; write file:///path, with three slashes.")
    return Path(text)


def _data_url(url: str, name: str, budget: MediaBudget) -> bytes:
    comma = url.find(",", 0, 256)
    if comma < 0:
        raise InputError(f"{name} has no comma before its data; expected data:image/png;base64,....")
    payload = url[comma + 1 :]
    if not url[:comma].lower().endswith(";base64"):
        _check_bytes(len(payload) - 2 * payload.count("%"), name, budget)
        return unquote_to_bytes(payload)
    payload = "".join(unquote(payload).split())
    _check_bytes(len(payload) * 3 // 4 - payload[-2:].count("="), name, budget)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise MediaError(f"{name} is not valid base64; was it cut?") from None


def _decoder(stream: io.BufferedIOBase, name: str) -> Callable[[Any], ImageFile.ImageFile]:
    head = stream.read(64)
    stream.seek(0)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile
    for magic, decoder in _DECODERS:
        if head.startswith(magic):
            return decoder
    what = next((w for at, magic, w in _OTHERS if head[at:].startswith(magic)), "")
    if not what:
        text = head.decode("utf-8", errors="ignore")  # a character may be cut at the end, so no strict reading
        plain = len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text)
        what = "a text file" if plain else "of an unknown format"
    raise MediaError(f"{name} is {what}, not a picture that is read here; convert it to {FORMATS}.")


def _decoded(begin: Callable[[], Image.Image], name: str, budget: MediaBudget, *, load: bool = True) -> Image.Image:
    """Reads the header, asks the budget, then decodes. Decoders raise nearly anything; one error leaves here."""
    try:
        with _whole_files_only():
            picture = begin()
            _check_area(picture.width, picture.height, name, budget)
            if load:
                picture.load()
            return picture
    except FovealError:
        raise
    except Image.DecompressionBombError:
        raise BudgetError(f"{name} is larger than PIL.Image.MAX_IMAGE_PIXELS allows; make it smaller.") from None
    except MemoryError:
        raise BudgetError(f"{name} does not fit into memory; make it smaller.") from None
    except Exception:  # texts of decoders are not passed on: they speak of buffers and addresses
        raise MediaError(f"{name} is damaged or cut off: it cannot be decoded. Save it again.") from None


def _check_area(width: int, height: int, name: str, budget: MediaBudget) -> None:
    if width * height > budget.image_px:
        raise BudgetError(
            f"{name} has {width} x {height} = {width * height:,} px; the budget is {budget.image_px:,}. "
            "Make it smaller or raise MediaBudget.image_px."
        )


def _check_bytes(size: int, name: str, budget: MediaBudget) -> None:
    if size > budget.file_bytes:
        raise BudgetError(
            f"{name} has {size:,} bytes; the budget is {budget.file_bytes:,}. "
            "Make it smaller or raise MediaBudget.file_bytes."
        )


class _Strictness:
    """Users in the block, and what the program had set before the first of them."""

    lock = threading.Lock()
    users = 0
    before = False


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Holds Pillow's global LOAD_TRUNCATED_IMAGES off, so that a cut file raises and is never half grey."""
    with _Strictness.lock:
        if not _Strictness.users:
            _Strictness.before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _Strictness.users += 1
    try:
        yield
    finally:
        with _Strictness.lock:
            _Strictness.users -= 1
            if not _Strictness.users:
                ImageFile.LOAD_TRUNCATED_IMAGES = _Strictness.before
