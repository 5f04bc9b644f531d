"""Padded squares: sides, padding, both ways to the small picture, and settings of folders."""

import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.processing.intake import Knobs
from foveal.processing.messages import ImagePart
from foveal.processing.padded import LOW, PaddedSquare, Sight, antialiased
from foveal.processing.patches import CLIP_COLOURS, HALF

LARGE = Sight(side_px=144, patch=8, colours=CLIP_COLOURS, normalize=False)
SMALL = Sight(side_px=48, patch=8, colours=HALF, resample=2)
ORIGINAL = PaddedSquare(first=LARGE, small=SMALL, tokens=36, original=True)
PORT = PaddedSquare(first=Sight(side_px=144, patch=8, colours=CLIP_COLOURS), small=SMALL, tokens=36, original=False)
ALONE = PaddedSquare(first=Sight(side_px=48, patch=8, colours=HALF), small=None, tokens=36, original=False)


@given(st.integers(1, 1200), st.integers(1, 1200), st.integers(1, 400))
@settings(max_examples=40)
def test_antialiased_bilinear_is_that_of_torch(height, width, side):
    values = np.random.default_rng(height * width).random((height, width, 3), dtype=np.float32)
    planes = torch.from_numpy(values).permute(2, 0, 1)[None]
    expected = F.interpolate(planes, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    ours = antialiased(values, side)
    assert ours.dtype == np.float32
    # Worst seen: 4.8e-7.
    np.testing.assert_allclose(ours, expected[0].permute(1, 2, 0).numpy(), rtol=0, atol=2e-6)


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(max_examples=300)
def test_one_side_fills_the_square_and_the_other_keeps_the_ratio(width, height):
    for vision in (ORIGINAL, PORT):
        across, down = vision.fitted(width, height)
        assert max(across, down) == 144
        assert min(across, down) >= 14
        short = min(width, height) / max(width, height) * 144
        if short >= 15:
            assert abs(min(across, down) - short) <= 1
    # The published code rounds down, the port to the nearest.
    assert all(0 <= b - a <= 1 for a, b in zip(ORIGINAL.fitted(width, height), PORT.fitted(width, height), strict=True))


def test_the_two_ways_of_rounding():
    assert ORIGINAL.fitted(200, 77) == (144, 55)  # 55.44
    assert ORIGINAL.fitted(1000, 389) == (144, 56)
    assert ORIGINAL.fitted(1000, 395) == (144, 56)  # 56.88
    assert PORT.fitted(1000, 395) == (144, 57)


def test_padding_is_the_mean_and_the_picture_lies_in_the_middle():
    picture = Image.new("RGB", (288, 101), (250, 1, 2))
    square = np.asarray(ORIGINAL.padded(picture))
    assert square.shape == (144, 144, 3)
    assert square[0, 0].tolist() == [122, 116, 104]
    top = (144 - 50) // 2
    assert (square[top : top + 50] == (250, 1, 2)).all()
    assert (square[: top - 1] == (122, 116, 104)).all()
    assert (square[top + 51 :] == (122, 116, 104)).all()
    upright = np.asarray(ORIGINAL.padded(Image.new("RGB", (101, 288), (250, 1, 2))))
    assert (upright == square.transpose(1, 0, 2)).all()


def opened(vision, picture, **options):
    return vision.open(ImagePart(source=picture), budget=MediaBudget(), knobs=Knobs(), count=1, **options)


def test_rows_are_patches_in_channel_row_column_order():
    pixels = np.random.default_rng(0).integers(0, 256, (144, 144, 3), dtype=np.uint8)
    rows = opened(ORIGINAL, Image.fromarray(pixels)).patches
    assert rows.shape == (18 * 18, 192)
    patch = pixels[3 * 8 : 4 * 8, 5 * 8 : 6 * 8].transpose(2, 0, 1).reshape(-1) / 255
    np.testing.assert_allclose(rows[3 * 18 + 5], patch, rtol=0, atol=1e-6)


def test_without_patches_nothing_is_made():
    found = opened(ORIGINAL, Image.new("RGB", (10, 10)), patches=False)
    assert found.patches.shape == (0, 192)
    assert found.extra[LOW].shape == (0, 192)
    assert found.medium.tokens == 36
    assert opened(ALONE, Image.new("RGB", (10, 10)), patches=False).extra == {}


def test_the_two_small_pictures_differ_in_the_last_bits_only():
    smooth = np.linspace(0, 255, 144 * 144 * 3).reshape(144, 144, 3).astype(np.uint8)
    ours = ORIGINAL.small.values(np.zeros((1, 1, 3), np.uint8))  # normalised black
    assert ours.tolist() == [[[-1.0] * 3]]
    raw = Image.fromarray(smooth)
    floats = ORIGINAL.low_values(raw, LARGE.values(smooth)) * 2 - 1
    whole = PORT.low_values(raw, LARGE.values(smooth))
    assert 1e-4 < np.abs(floats - whole).max() < 0.02


def write(folder, **files):
    for name, values in files.items():
        (folder / f"{name}_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("vision", [ORIGINAL, PORT, ALONE, PaddedSquare(**{**vars(ALONE), "original": True})])
def test_files_give_the_same_settings_back(vision, tmp_path, caplog):
    for name, values in vision.files().items():
        (tmp_path / name).write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        assert vision.read(tmp_path) == vision
    assert not caplog.records


def test_settings_of_the_folder_stand_above_the_family_s(tmp_path):
    write(
        tmp_path, preprocessor={"do_normalize": True, "image_mean": [0.2] * 3, "image_std": [0.3] * 3, "min_size": 20}
    )
    found = ORIGINAL.read(tmp_path)
    assert found.first.normalize
    assert found.first.padding == (51, 51, 51)
    assert found.fitted(1000, 1) == (144, 20)


@pytest.mark.parametrize(
    ("vision", "files", "message"),
    [
        (ORIGINAL, {"processor": {"num_image_tokens": 576}}, "num_image_tokens is 576"),
        (ORIGINAL, {"processor": {"add_special_token": True}}, "add_special_token is on"),
        (ORIGINAL, {"processor": {"sft_format": "plain"}}, "sft_format is 'plain'"),
        (ORIGINAL, {"preprocessor": {"image_size": 1024}}, "image_size is 1024.*144 x 144"),
        (ORIGINAL, {"preprocessor": {"rescale_factor": 1}}, "rescale_factor is 1"),
        (ORIGINAL, {"preprocessor": {"rescale_factor": [1]}}, r"rescale_factor is \[1\]"),
        (ORIGINAL, {"preprocessor": {"image_mean": [0.5, 0.5]}}, "are no colours"),
        (ORIGINAL, {"preprocessor": {"background_color": [0, 0, 0]}}, r"background_color is \[0, 0, 0\]"),
        (PORT, {"preprocessor": {"do_pad": False}}, "do_pad is False"),
        (PORT, {"processor": {"image_processor": {"size": {"height": 48, "width": 40}}}}, "size is"),
        (PORT, {"preprocessor": {"high_res_size": 100}}, "high_res_size is 100"),
        (PORT, {"preprocessor": {"resample": 5}}, "resample is 5"),
        (PORT, {"preprocessor": {"size": [48, 48]}}, r"size is \[48, 48\]"),
        (ALONE, {"preprocessor": {"min_size": "14"}}, "min_size is '14'"),
    ],
)
def test_what_is_not_computed_is_refused(vision, files, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        vision.read(write(tmp_path, **files))


def test_an_unknown_setting_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        ORIGINAL.read(write(tmp_path, preprocessor={"imagesize": 144}))
    assert "'imagesize' has no effect; did you mean 'image_size'" in caplog.text


def test_one_size_has_no_small_picture():
    with pytest.raises(InputError, match="one size only"):
        ALONE.low_values(Image.new("RGB", (48, 48)), np.zeros((48, 48, 3), np.float32))
