"""Our resize against Pillow's: equal to the last bit."""

import numpy as np
import pytest
from PIL import Image

from foveal.core.media import MediaBudget
from foveal.processing import exact, patches
from foveal.processing.exact import resize_exact
from foveal.processing.media import open_image
from foveal.processing.patches import CLIP_COLOURS, image_patches, video_patches
from foveal.processing.resize import PatchGrid, resized

built = pytest.mark.skipif(exact.native is None, reason="the C module was not built here")
BICUBIC = Image.Resampling.BICUBIC


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def checks(width, height):
    """Values of 0 and 255 only: sums below 0 and above 255 are cut."""
    return (np.indices((height, width)).sum(0)[..., None] // (2, 3, 5) % 2 * 255).astype(np.uint8)


@built
def test_it_works_with_this_pillow():
    assert exact.available()


@built
def test_pixels_equal_pillows_over_300_random_sizes():
    rng = np.random.default_rng(1)
    for number in range(300):
        before = tuple(int(v) for v in rng.integers(20, 220, 2))
        after = tuple(int(v) for v in np.maximum(1, before * rng.uniform(0.25, 2.2, 2)))
        pixels = (noise if number % 2 else checks)(*before)
        picture = Image.fromarray(pixels)
        expected = np.asarray(picture.resize(after, BICUBIC))
        found = resize_exact(pixels, after)
        assert found is not None
        assert np.array_equal(found, expected), (before, after)
        assert np.array_equal(resize_exact(picture, after), expected), (before, after)


@built
@pytest.mark.parametrize(("before", "after"), [((400, 150), (28, 150)), ((300, 700), (300, 90)), ((90, 700), (84, 28))])
def test_one_pass_and_columns_first(before, after):
    pixels = checks(*before)
    assert np.array_equal(resize_exact(pixels, after), np.asarray(Image.fromarray(pixels).resize(after, BICUBIC)))


@built
def test_memory_that_is_not_contiguous():
    pixels = noise(160, 120)[:, ::2]
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((56, 84), BICUBIC))
    assert np.array_equal(resize_exact(pixels, (56, 84)), expected)


@built
def test_a_side_of_few_pixels_is_left_to_pillow():
    assert resize_exact(noise(7, 100), (28, 28)) is None
    assert np.array_equal(
        np.asarray(resized(noise(7, 100), (28, 28))),
        np.asarray(Image.fromarray(noise(7, 100)).resize((28, 28), BICUBIC)),
    )


@built
def test_the_c_module_refuses_sizes_that_do_not_fit():
    starts, weights = exact._weights(64, 32)
    source, target = noise(64, 10), np.empty((10, 32, 3), np.uint8)
    taps = weights.shape[1]
    exact.native.filter_rows(source, target, starts, weights, 10, 64, 32, taps)
    wrong = [(11, 64, 32, taps), (10, 65, 32, taps), (10, 64, 33, taps), (10, 64, 32, taps + 4), (10, 64, 32, -4)]
    for sizes in wrong:
        with pytest.raises(ValueError, match="sizes"):
            exact.native.filter_rows(source, target, starts, weights, *sizes)
    with pytest.raises(ValueError, match="sizes"):
        exact.native.filter_rows(source, target, starts + 40, weights, 10, 64, 32, taps)
    with pytest.raises(ValueError, match="sizes"):
        exact.native.filter_columns(source, target, starts, weights, 64, 10, 32, taps)
    levels = np.zeros((3, 256), np.float32)
    rows = np.empty((8, 3, 2, 25), np.float32)
    with pytest.raises(ValueError, match="sizes"):
        exact.native.cut(noise(20, 10), levels, rows, 2, 4, 5, 2, 2, 1, 2)  # moments 1 and 2 of two


def test_patches_without_the_c_module_are_the_same(monkeypatch):
    grid = PatchGrid()
    still, frames = noise(150, 90), np.stack([noise(112, 84, seed) for seed in range(3)])
    pictures = [still, Image.fromarray(still)]
    found = [image_patches(p, grid=grid, normalize=CLIP_COLOURS)[0] for p in pictures]
    moving = video_patches(frames, grid=grid, normalize=CLIP_COLOURS)[0]
    monkeypatch.setattr(patches, "native", None)
    monkeypatch.setattr(exact, "native", None)
    exact.available.cache_clear()
    try:
        for picture, values in zip(pictures, found, strict=True):
            assert np.array_equal(image_patches(picture, grid=grid, normalize=CLIP_COLOURS)[0], values)
        assert np.array_equal(video_patches(frames, grid=grid, normalize=CLIP_COLOURS)[0], moving)
        assert not exact.available()
    finally:
        monkeypatch.undo()
        exact.available.cache_clear()


def test_pillows_own_pixels_are_not_changed():
    picture = open_image(noise(150, 90), budget=MediaBudget())
    before = picture.tobytes()
    image_patches(picture, grid=PatchGrid(), normalize=CLIP_COLOURS)
    assert picture.tobytes() == before
