"""Files that are no pictures or videos, though many of them look like some: each has to be refused."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

FORMATS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}


def picture(kind: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    """A sound file of random pixels."""
    letters = random.Random(kind).randbytes(size[0] * size[1] * 3)
    out = io.BytesIO()
    Image.frombytes("RGB", size, letters).save(out, kind, **options)
    return out.getvalue()


def large() -> bytes:
    """A sound picture of 12 megapixels, which takes a while to decode."""
    out = io.BytesIO()
    Image.new("RGB", (4000, 3000), "teal").save(out, "PNG", compress_level=1)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that claims a size, whatever its chunks hold."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def corpus() -> Iterator[tuple[str, bytes]]:
    """At least 100 (name, bytes)."""
    chance = random.Random(7)
    for kind, ending in FORMATS.items():
        sound = picture(kind)
        for share in (0.02, 0.1, 0.3, 0.6, 0.9):
            yield f"cut-{share}.{ending}", sound[: max(3, int(len(sound) * share))]
        if kind not in ("BMP", "WEBP"):  # for them it is a black picture
            yield f"head-then-zeros.{ending}", sound[:40] + bytes(len(sound) - 40)
        yield f"head-then-noise.{ending}", sound[:30] + chance.randbytes(len(sound) - 30)
        yield f"head-only.{ending}", sound[:16]
        yield f"behind-a-blank.{ending}", b" " + sound
        yield f"backwards.{ending}", sound[::-1]
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    for width, height in (
        (60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (40_000, 1_000), (8_000, 5_000),
    ):  # fmt: skip
        yield f"claims-{width}x{height}.png", png(width, height, data)
    yield "zero-wide.png", png(0, 10, data)
    yield "zero-high.png", png(10, 0, data)
    yield "no-pixels.png", png(64, 64)
    yield "bad-depth.png", png(64, 64, data, depth=7)
    yield "bad-colour.png", png(64, 64, data, colour=9)
    yield "bad-checksum.png", png(64, 64, data)[:-20] + bytes(20)
    yield "inflates.png", png(5_000, 6_000, chunk(b"IDAT", zlib.compress(bytes(10**6))))
    yield "text-bomb.png", png(64, 64, *(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(4 * 10**6))) for _ in range(30)))
    yield "profile-bomb.png", png(64, 64, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))))
    yield "palette-without-colours.png", png(64, 64, data, colour=3)
    gif = picture("GIF")
    yield "claims-large.gif", gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:]
    bmp = picture("BMP")
    for width, height in ((65_000, 65_000), (-5, 5), (0, 0), (2**31 - 1, 2**31 - 1)):
        yield f"claims-{width}x{height}.bmp", bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]
    yield "compressed-oddly.bmp", bmp[:30] + struct.pack("<I", 99) + bmp[34:]
    for order, magic in (("<", b"II*\0"), (">", b"MM\0*")):
        yield f"loops-{len(order)}{magic[:1].decode()}.tif", magic + struct.pack(order + "IH", 8, 0) + bytes(4)
        yield f"points-past-the-end{magic[:1].decode()}.tif", magic + struct.pack(order + "I", 2**31)
        entries = b"".join(struct.pack(order + "HHII", t, 4, 1, v) for t, v in ((256, 60_000), (257, 60_000), (273, 8)))
        yield f"claims-large{magic[:1].decode()}.tif", magic + struct.pack(order + "IH", 8, 3) + entries + bytes(4)
    jpeg = picture("JPEG")
    at = jpeg.find(b"\xff\xc0") + 5
    for width, height in ((65_535, 65_535), (0, 10), (20_000, 20_000)):
        yield f"claims-{width}x{height}.jpg", jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]
    yield "only-markers.jpg", b"\xff\xd8\xff" + b"\xff\xe0\x00\x02" * 5000
    yield "no-end-of-marker.jpg", b"\xff\xd8\xff\xe1\xff\xff" + bytes(100)
    webp = picture("WEBP")
    yield "wrong-length.webp", webp[:4] + struct.pack("<I", 2**31 - 1) + webp[8:]
    yield "no-chunk.webp", b"RIFF\x04\0\0\0WEBP"
    yield "thin.png", picture("PNG", (1, 300))
    yield "flat.png", picture("PNG", (2000, 1))
    yield from others()


def others() -> Iterator[tuple[str, bytes]]:
    """What is another kind of file altogether."""
    yield "one-byte", b"\0"
    yield "text.txt", b"just words\n" * 50
    yield "page.html", b"<!doctype html><script>alert(1)</script>"
    yield "drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/"/></svg>'
    yield "entity.svg", b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>'
    yield "paper.pdf", b"%PDF-1.7\n" + bytes(200)
    yield "page.ps", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n"
    yield "archive.zip", b"PK\x03\x04" + bytes(100)
    yield "archive.gz", b"\x1f\x8b\x08" + bytes(100)
    yield "code.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200)
    yield "picture.avif", b"\0\0\0\x20ftypavif" + bytes(200)
    yield "picture.heic", b"\0\0\0\x18ftypheic" + bytes(200)
    yield "picture.psd", b"8BPS\0\x01" + bytes(200)
    yield "picture.ico", b"\0\0\x01\0\x01\0" + bytes(100)
    yield "picture.pcx", b"\x0a\x05\x01\x08" + bytes(200)
    yield "picture.fits", b"SIMPLE  =                    T" + bytes(200)
    yield "program", b"\x7fELF\x02\x01\x01" + bytes(200)
    yield "pickled", b"\x80\x04\x95" + bytes(30)
    yield "list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    yield "list.ffconcat", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "stream.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"
    yield "film.mp4", b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2" + bytes(500)
    yield "film.mkv", b"\x1aE\xdf\xa3" + bytes(500)
    yield "film.avi", b"RIFF\xff\xff\xff\x7fAVI LIST" + bytes(500)
