"""What a user may name as a picture, and the plain error for everything that is none."""

import base64
import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from foveal.core.errors import BudgetError, InputError, MediaError
from foveal.core.media import MediaBudget
from foveal.processing.media import describe, image_size, open_image

BUDGET = MediaBudget()
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def stored(kind="PNG", pixels=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10))


def test_all_ways_to_name_one_picture(tmp_path, monkeypatch):
    data = stored()
    path = tmp_path / "a picture, 100% ok.png"
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    percent = "data:image/png," + "".join(f"%{b:02x}" for b in data)
    wrapped = url[:90] + "\n  " + url[90:]
    sources = [
        path, str(path), path.name, path.as_uri(), path.as_uri().replace("file://", "FILE://localhost"), url, percent,
        wrapped, url.replace("+", "%2B"), data, bytearray(data), memoryview(data),
        memoryview(bytes(b for d in data for b in (d, 0)))[::2], Image.open(path), PIXELS,
    ]  # fmt: skip
    for source in sources:
        picture = open_image(source, budget=BUDGET)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), PIXELS), describe(source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"])
def test_formats(kind):
    picture = open_image(stored(kind), budget=BUDGET)
    assert picture.size == (80, 60)
    assert picture.mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WebP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    file = io.BytesIO()
    frames[0].save(
        file,
        kind,
        save_all=True,
        append_images=frames[1:],
        duration=100,
        **({} if kind == "GIF" else {"lossless": True}),
    )
    assert np.asarray(open_image(file.getvalue(), budget=BUDGET))[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1)])
def test_tiny_pictures(size):
    assert open_image(stored(pixels=np.zeros((*size[::-1], 3), np.uint8)), budget=BUDGET).size == size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_cut_file_is_an_error_and_never_half_a_picture(kind, part):
    data = stored(kind)
    with pytest.raises(MediaError, match="damaged or cut off"):
        open_image(data[: int(len(data) * part)], budget=BUDGET)


def test_progressive_jpeg_that_is_cut():
    data = stored("JPEG", progressive=True)
    assert open_image(data, budget=BUDGET).size == (80, 60)
    with pytest.raises(MediaError, match="damaged or cut off"):
        open_image(data[: len(data) // 2], budget=BUDGET)


def test_a_cut_file_is_an_error_even_where_the_program_allows_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = stored("JPEG")
    failures = []

    def read():
        for _ in range(5):
            try:
                open_image(data[: len(data) // 2], budget=BUDGET)
            except MediaError:
                failures.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 20
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # as the program left it


def test_a_cut_picture_of_the_users_own():
    data = stored("JPEG")
    with pytest.raises(MediaError, match=r"PIL image .* is damaged"):
        open_image(Image.open(io.BytesIO(data[: len(data) // 2])), budget=BUDGET)


def test_bytes_that_are_flipped_give_an_error_or_a_picture_of_that_size():
    rng = np.random.default_rng(3)
    for kind in ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"):
        data = bytearray(stored(kind, PIXELS[:20, :20]))
        for _ in range(60):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 6):
                damaged[at] = rng.integers(256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's own remarks on what it reads
                    assert open_image(bytes(damaged), budget=MediaBudget(image_px=10**6)).mode == "RGB"
            except MediaError:
                pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am no picture\n" * 9, "is a text file"),
        (b"BM is how this text begins, and it is no bitmap at all" * 3, "damaged"),
        (b"%PDF-1.7 and so on and on", "is a PDF"),
        (b"\0\0\0\x20ftypisom" + b"\0" * 40, "is an MP4"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 40, "is a HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is a PostScript"),
        (bytes(range(200, 256)), "of an unknown format"),
        (b"\xff\xd8\xff", "damaged"),
    ],
)
def test_files_that_are_no_picture(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        open_image(path, budget=BUDGET)
    assert "photo.jpg" in str(caught.value)


def test_formats_beyond_the_list_are_not_decoded():
    for kind in ("PPM", "ICO", "TGA", "PCX"):
        with pytest.raises(MediaError):
            open_image(stored(kind), budget=BUDGET)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("", InputError, "empty name"),
        ("   ", InputError, "empty name"),
        ("a\0b", InputError, "zero character"),
        ("https://example.org/a.jpg", InputError, "remote media are off.*Download"),
        ("HTTP://example.org/a.jpg", InputError, "remote"),
        ("s3://bucket/a.jpg", InputError, "remote"),
        ("gopher://a/b.jpg", InputError, "unknown scheme"),
        ("file://elsewhere/share/a.jpg", InputError, "another machine"),
        ("file://", InputError, "names no file"),
        ("nowhere/at/all.jpg", MediaError, "does not exist"),
        ("x" * 5000, MediaError, "cannot be opened"),
        ("data:image/png;base64", InputError, "no comma"),
        ("data:image/png;base64,@@@@", MediaError, "not valid base64"),
        ("data:image/png;base64,iVBORw0KGg", MediaError, "not valid base64"),
        ("data:image/png;base64,iVBORw0KGgo=", MediaError, "damaged"),
        ("data:image/png;base64,", MediaError, "empty"),
        (b"", MediaError, "empty"),
        (None, InputError, "NoneType"),
        (7, InputError, "type int"),
        ({"url": "x"}, InputError, "type dict"),
    ],
)  # fmt: skip
def test_names_that_name_no_picture(source, kind, message):
    import foveal.processing.media as media

    opened = getattr(media.open_image, "__wrapped__", media.open_image)  # without the types checked first
    with pytest.raises(kind, match=message):
        opened(source, budget=BUDGET)


def test_folder_pipe_and_device(tmp_path):
    with pytest.raises(MediaError, match="is a folder"):
        open_image(tmp_path, budget=BUDGET)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(MediaError, match="device or pipe"):
        open_image(tmp_path / "pipe.jpg", budget=BUDGET)
    with pytest.raises(MediaError, match="device or pipe"):
        open_image("/dev/zero", budget=BUDGET)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(stored())

    def refuse(*_):
        raise PermissionError(13, "Permission denied", "secret detail")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MediaError, match=r"a\.png' cannot be opened: Permission denied\.$"):
        open_image(path, budget=BUDGET)


def test_bytes_are_counted_before_they_are_read(tmp_path, monkeypatch):
    data = stored()
    path = tmp_path / "a.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    small = MediaBudget(file_bytes=len(data) - 1)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("the file was opened"))
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("the URL was decoded"))
    for source in (path, data, url):
        with pytest.raises(BudgetError, match=f"the budget is {len(data) - 1:,}"):
            open_image(source, budget=small)


def test_exactly_the_budget_is_allowed():
    data = stored()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    budget = MediaBudget(file_bytes=len(data), image_px=80 * 60)
    for source in (data, url, PIXELS, Image.fromarray(PIXELS)):
        assert open_image(source, budget=budget).size == (80, 60)
    for source in (data, url, PIXELS, Image.fromarray(PIXELS)):
        with pytest.raises(BudgetError, match="4,800 px; the budget is 4,799"):
            open_image(source, budget=MediaBudget(image_px=80 * 60 - 1))


@pytest.mark.parametrize("size", [(20_000, 20_000), (200_000, 100_000), (10_001, 10_000)])
def test_decompression_bombs_are_refused_from_the_header(size, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoding began"))
    with pytest.raises(BudgetError, match="image_px"):
        open_image(png_header(*size), budget=BUDGET)


def test_large_but_allowed_sizes_bring_no_warning():
    # Pillow would warn from 89 Mpx on; here the header passes and the missing pixels are what is wrong.
    with pytest.raises(MediaError, match="damaged"):
        open_image(png_header(10_000, 9_500), budget=BUDGET)


def test_pixels_are_the_users_own_and_stay_unchanged():
    before = Image.fromarray(PIXELS).convert("RGBA")
    open_image(before, budget=BUDGET)
    assert before.mode == "RGBA"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("https://user:secret@example.org/a/b.jpg?token=secret#x", "'https://example.org/a/b.jpg'"),
        ("data:image/png;base64,AAAA", "data URL (image/png, 26 characters)"),
        ("evil\x1b[31m\n<|im_start|>.jpg", "'evil�[31m�<|im_start|>.jpg'"),
        (b"abc", "3 bytes"),
        (np.zeros((2, 3, 3), np.uint8), "array (uint8, 2 x 3 x 3)"),
        (Image.new("L", (5, 4)), "PIL image (L, 5 x 4)"),
        ([1, 2], "list of 2 frames"),
        (None, "an object of type NoneType"),
    ],
)
def test_describe(source, text):
    assert describe(source) == text


def test_describe_is_short():
    assert len(describe("data:" + "x" * 10**6)) < 160
    long = describe("/folder/" + "x" * 10**4 + "/name.jpg")
    assert len(long) < 110
    assert long.endswith("/name.jpg'")


def test_sizes_from_headers() -> None:
    picture = Image.fromarray(PIXELS[:20, :30])
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        file = io.BytesIO()
        picture.save(file, "JPEG", exif=exif)
        size, found = image_size(file.getvalue(), budget=BUDGET)
        assert found == turn and size == open_image(file.getvalue(), budget=BUDGET).size
    cut = file.getvalue()[:-40]  # the header is whole
    assert image_size(cut, budget=BUDGET)[0] == (20, 30)
    assert image_size(np.zeros((4, 5), np.uint8), budget=BUDGET) == ((5, 4), 1)
    with pytest.raises(BudgetError):
        image_size(file.getvalue(), budget=MediaBudget(image_px=599))
