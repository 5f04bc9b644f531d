"""Patch rows against transformers' PIL processor: grids and values equal, bit for bit."""

import io
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from foveal.core.box import ImageView
from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.processing.media import open_image
from foveal.processing.patches import Normalize, image_patches, video_patches
from foveal.processing.resize import PatchGrid, resized

GRID = PatchGrid()
CLIP = Normalize(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
HALF = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference(picture, grid, normalize):
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": grid.min_px, "longest_edge": grid.max_px},
        patch_size=grid.patch,
        merge_size=grid.merge,
        temporal_patch_size=grid.temporal,
        image_mean=list(normalize.mean),
        image_std=list(normalize.std),
    )
    found = processor(picture, return_tensors="np")
    return found["pixel_values"], tuple(found["image_grid_thw"][0].tolist())


def random_cases(count):
    rng = random.Random(1)
    while count:
        width, height = (int(2 ** rng.uniform(0, 9.5)) for _ in range(2))
        if max(width, height) / min(width, height) > 200 or width * height < 4:
            continue
        patch, merge = rng.choice([(14, 2), (14, 2), (16, 2), (8, 1), (6, 3)])
        low = rng.choice([(patch * merge) ** 2, 3136, 30_000])
        grid = PatchGrid(patch=patch, merge=merge, temporal=rng.choice([1, 2, 2, 3]), min_px=low, max_px=low * 20)
        yield width, height, grid, rng.choice([CLIP, HALF])
        count -= 1


def test_values_and_grids_equal_transformers_over_150_sizes():
    for seed, (width, height, grid, normalize) in enumerate(random_cases(150)):
        picture = noise(width, height, seed)
        patches, view, shape = image_patches(picture, grid=grid, normalize=normalize)
        expected, expected_shape = reference(picture, grid, normalize)
        assert shape == expected_shape
        assert patches.dtype == np.float32
        np.testing.assert_array_equal(patches, expected)
        assert view == ImageView(original=(width, height), processed=grid.size(width, height))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK"])
def test_files_of_all_modes_equal_transformers(mode):
    picture = noise(90, 70).convert("RGBA").convert(mode) if mode != "P" else noise(90, 70).quantize(32)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    file = io.BytesIO()
    picture.save(file, kind)
    ours = open_image(file.getvalue(), budget=MediaBudget())
    expected, _ = reference(Image.open(file), GRID, CLIP)
    np.testing.assert_array_equal(image_patches(ours, grid=GRID, normalize=CLIP)[0], expected)


def test_every_level_has_the_published_value():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 28 * 28 // 4).reshape(-1, 224)
    picture = Image.fromarray(levels).convert("RGB")
    assert GRID.size(*picture.size) == picture.size  # no resampling
    values = np.unique(image_patches(picture, grid=GRID, normalize=CLIP)[0].reshape(-1, 3, 392)[:, 0])
    exact = (np.arange(256) / 255 - CLIP.mean[0]) / CLIP.std[0]
    assert len(values) == 256
    assert np.abs(values - exact).max() < 3e-7


@given(data=st.data(), merge=st.integers(1, 3), patch=st.integers(1, 6), temporal=st.integers(1, 3))
def test_a_row_holds_the_pixels_that_the_docstring_says(data, merge, patch, temporal):
    grid = PatchGrid(patch=patch, merge=merge, temporal=temporal, min_px=1, max_px=10**6)
    across, down, steps = (data.draw(st.integers(1, 4)) for _ in range(3))
    height, width, count = down * grid.factor, across * grid.factor, steps * temporal
    frames = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    patches, _, shape = video_patches(frames, grid=grid, normalize=HALF)
    assert shape == (steps, down * merge, across * merge)
    row = 0
    for step in range(steps):
        for block in np.ndindex(down, across, merge, merge):
            top = (block[0] * merge + block[2]) * patch
            left = (block[1] * merge + block[3]) * patch
            cube = frames[step * temporal : (step + 1) * temporal, top : top + patch, left : left + patch]
            expected = (cube.transpose(3, 0, 1, 2).reshape(-1) / 255 - 0.5) / 0.5
            assert np.abs(patches[row] - expected).max() < 1e-6
            row += 1
    assert row == len(patches)


def test_a_still_is_two_equal_frames():
    picture = noise(112, 84)
    patches, _, shape = image_patches(picture, grid=GRID, normalize=CLIP)
    halves = patches.reshape(-1, 3, 2, 196)
    assert np.array_equal(halves[:, :, 0], halves[:, :, 1])
    as_video, _, video_shape = video_patches([picture, picture], grid=GRID, normalize=CLIP)
    assert shape == video_shape
    assert np.array_equal(patches, as_video)


def test_video_is_resized_and_its_last_frame_repeated():
    frames = [noise(100, 60, seed) for seed in range(3)]
    patches, view, shape = video_patches(frames, grid=GRID, normalize=CLIP, size=(84, 56), original=(200, 120))
    assert shape == (2, 4, 6)
    assert view == ImageView(original=(200, 120), processed=(84, 56))
    repeated = patches.reshape(2, 24, 3, 2, 196)[1]
    assert np.array_equal(repeated[:, :, 0], repeated[:, :, 1])
    alone, _, _ = image_patches(resized(frames[2], (84, 56)), grid=GRID, normalize=CLIP)
    assert np.array_equal(repeated.reshape(24, -1), alone)
    stack = np.stack([np.asarray(f) for f in frames])
    assert np.array_equal(patches, video_patches(stack, grid=GRID, normalize=CLIP, size=(84, 56))[0])


@given(width=st.integers(1, 400), height=st.integers(1, 400))
def test_thin_and_tiny_pictures_work(width, height):
    if max(width, height) / min(width, height) > 200:
        return
    grid = PatchGrid(min_px=784, max_px=784 * 16)
    patches, view, shape = image_patches(noise(width, height), grid=grid, normalize=CLIP)
    assert patches.shape == (np.prod(shape), 3 * 2 * 14 * 14)
    assert np.isfinite(patches).all()
    assert view.processed == (shape[2] * 14, shape[1] * 14)


def test_what_is_no_video():
    with pytest.raises(InputError, match="at least one"):
        video_patches([], grid=GRID, normalize=CLIP)
    with pytest.raises(InputError, match="frame 1 is"):
        video_patches([noise(56, 56), noise(84, 56)], grid=GRID, normalize=CLIP)
    with pytest.raises(InputError, match="multiples of 28"):
        video_patches([noise(57, 56)], grid=GRID, normalize=CLIP)
    with pytest.raises(InputError, match="expected RGB"):
        video_patches([noise(56, 56).convert("L")], grid=GRID, normalize=CLIP)


def test_what_is_no_rgb_picture():
    with pytest.raises(InputError, match="mode RGBA, expected RGB"):
        image_patches(noise(56, 56).convert("RGBA"), grid=GRID, normalize=CLIP)


def test_normalize_refuses_zero():
    with pytest.raises(ConfigError, match="std above 0"):
        Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.0, 0.5))
