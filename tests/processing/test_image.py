"""Every way of storing pixels ends as upright 8-bit RGB; ordinary ones exactly as in transformers."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import convert_to_rgb

from foveal.core.errors import MediaError
from foveal.core.media import MediaBudget
from foveal.processing.image import from_array, upright_rgb
from foveal.processing.media import open_image

BUDGET = MediaBudget()


def photo(width=40, height=30, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def stored(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def rgba():
    return Image.fromarray(photo(channels=4), "RGBA")


def palette_with_transparency():
    picture = Image.fromarray(photo()).quantize(16)
    picture.info["transparency"] = 3
    return picture


def palette_with_many_alphas():
    picture = Image.fromarray(photo()).quantize(16)
    picture.info["transparency"] = bytes(range(0, 256, 16))
    return picture


def colour_key():
    pixels = photo()
    pixels[4:9, 4:9] = (10, 20, 30)
    picture = Image.fromarray(pixels)
    picture.info["transparency"] = (10, 20, 30)
    return picture


ORDINARY = {
    "RGB": lambda: Image.fromarray(photo()),
    "RGBA": rgba,
    "LA": lambda: rgba().convert("LA"),
    "L": lambda: Image.fromarray(photo()).convert("L"),
    "1": lambda: Image.fromarray(photo()).convert("1"),
    "P": lambda: Image.fromarray(photo()).quantize(16),
    "P and one clear colour": palette_with_transparency,
    "P and many alphas": palette_with_many_alphas,
    "RGB and colour key": colour_key,
    "CMYK": lambda: Image.fromarray(photo()).convert("CMYK"),
    "YCbCr": lambda: Image.fromarray(photo()).convert("YCbCr"),
    "HSV": lambda: Image.fromarray(photo()).convert("HSV"),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_modes_equal_transformers(kind):
    picture = ORDINARY[kind]()
    ours = upright_rgb(picture)
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), convert_to_rgb(ORDINARY[kind](), return_numpy=True))


def test_transparent_becomes_white():
    clear = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    for picture in (clear, clear.convert("LA"), clear.convert("RGBa"), clear.convert("LA").convert("La")):
        assert np.asarray(upright_rgb(picture)).min() == 255


@pytest.mark.parametrize("kind", ORDINARY)
def test_transparency_can_be_dropped(kind):
    """As Pillow's own conversion does, which some published processors call."""
    found = upright_rgb(ORDINARY[kind](), alpha="drop")
    with warnings.catch_warnings(action="ignore"):  # Pillow's, about palettes with alpha
        assert np.array_equal(found, ORDINARY[kind]().convert("RGB"))


def test_colours_under_transparency_stay_when_it_is_dropped():
    colours = np.full((2, 3, 4), (10, 20, 30, 0), np.uint8)
    clear = Image.fromarray(colours, "RGBA")
    for source in (clear, stored(clear, "PNG"), colours):
        assert np.asarray(open_image(source, budget=BUDGET, alpha="drop"))[0, 0].tolist() == [10, 20, 30]
    grey = clear.convert("LA")
    # The stored colours of premultiplied modes are lost where nothing is opaque; half of it comes back nearly.
    half = Image.fromarray(np.full((2, 3, 4), (100, 200, 60, 128), np.uint8), "RGBA")
    for picture in (half.convert("RGBa"), half.convert("LA").convert("La")):
        found = np.asarray(upright_rgb(picture, alpha="drop"))[0, 0].astype(int)
        wanted = (100, 200, 60) if picture.mode == "RGBa" else (half.convert("L").getpixel((0, 0)),) * 3
        assert abs(found - wanted).max() <= 2
    assert np.asarray(upright_rgb(grey, alpha="drop")).max() < 255
    keyed = Image.fromarray(np.array([[5, 500]], np.uint16))
    keyed.info["transparency"] = 5
    assert np.asarray(upright_rgb(keyed, alpha="drop"))[0, :, 0].tolist() == [0, 2]
    assert np.asarray(upright_rgb(keyed))[0, 0, 0] == 255


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B"])
def test_16_bit_grey_is_scaled_not_cut(mode):
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    if mode == "I":
        picture = Image.fromarray(values.astype(np.int32))
    else:
        picture = Image.frombytes(mode, (7, 1), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert picture.mode == mode
    grey = np.asarray(upright_rgb(picture))
    assert grey[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]
    assert (grey[..., 0] == grey[..., 2]).all()


def test_16_bit_png_from_a_file():
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    data = stored(Image.fromarray(values), "PNG")
    assert np.asarray(open_image(data, budget=BUDGET))[0, :, 1].tolist() == list(range(256))


def test_floating_point_picture():
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    assert np.asarray(upright_rgb(Image.fromarray(values)))[2, 3].tolist() == [255] * 3
    with pytest.raises(MediaError, match="floating-point values from 0 to 255"):
        upright_rgb(Image.fromarray(values * 255))


def test_32_bit_values_beyond_16_bits():
    with pytest.raises(MediaError, match="expected 16 bits"):
        upright_rgb(Image.fromarray(np.array([[70000]], np.int32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
def test_exif_orientation_is_undone(orientation, kind):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, 8:] = 255  # black left, white right, and a grey band above
    upright[:2] = 128
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WebP" else {}
    data = stored(Image.fromarray(np.ascontiguousarray(turned)), kind, exif=exif, **options)
    found = open_image(data, budget=BUDGET)
    assert found.size == (16, 8)
    assert np.abs(np.asarray(found).astype(int) - upright).max() <= 4
    again = upright_rgb(found)  # a second pass must not turn it once more
    assert again.size == (16, 8)
    assert np.array_equal(np.asarray(again), np.asarray(found))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's, and the user may see it
def test_damaged_exif_leaves_the_picture_as_it_is(exif):
    data = stored(Image.fromarray(photo()), "JPEG", exif=exif)
    assert open_image(data, budget=BUDGET).size == (40, 30)


@pytest.mark.parametrize(
    "array",
    [
        photo(),
        photo()[..., 0],
        photo(channels=4),
        photo()[..., :1],
        photo() / 255.0,
        (photo() / 255.0).astype(np.float16),
        photo().astype(np.uint16) * 257,
        photo()[..., 0] > 127,
        photo()[::-1, ::2],
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}",
)
def test_arrays(array):
    picture = from_array(array)
    assert picture.mode == "RGB"
    assert picture.size == array.shape[1::-1]


def test_floats_and_bytes_of_an_array_agree():
    assert np.array_equal(np.asarray(from_array(photo() / 255.0)), photo())
    assert np.array_equal(np.asarray(from_array(photo().astype(np.int32) * 257)), photo())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 40, 30), np.uint8), "channels to the end"),
        (np.zeros((40, 30, 2), np.uint8), "expected"),
        (np.zeros((0, 30, 3), np.uint8), "no pixel"),
        (np.zeros((4,), np.uint8), "expected"),
        (np.full((4, 4, 3), 255.0), "0 to 1"),
        (np.full((4, 4, 3), np.nan), "0 to 1"),
        (np.full((4, 4, 3), -1), "16 bits"),
        (np.full((4, 4, 3), 1j), "complex"),
        (np.full((4, 4, 3), -1, np.int8), "int8"),
    ],
)
def test_arrays_that_are_no_picture(array, message):
    with pytest.raises(MediaError, match=message):
        open_image(array, budget=BUDGET)
