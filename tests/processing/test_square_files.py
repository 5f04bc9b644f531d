"""Squares as published folders state them."""

import json

import pytest

from foveal.core.errors import ConfigError
from foveal.processing.patches import CLIP_COLOURS, HALF
from foveal.processing.square_files import PublishedSquare

VIT = PublishedSquare(side_px=224, patch=16, normalize=HALF, resample=2, makers=("ViTImageProcessor", ""))
CLIP = PublishedSquare(
    side_px=224, patch=32, normalize=CLIP_COLOURS, fit="crop", makers=("CLIPImageProcessor", "CLIPProcessor")
)


def read(folder, square, values, name="preprocessor_config.json"):
    (folder / name).write_text(json.dumps(values))
    return square.read(folder)


def test_the_publishers_vit_file_is_silent_on_the_filter(tmp_path):
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.4]}
    found = read(tmp_path, VIT, {"do_normalize": True, "do_resize": True, **colours, "size": 384})
    assert (found.side_px, found.fit, found.resample) == (384, "stretch", 2)
    assert (found.normalize.mean, found.normalize.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.4))


@pytest.mark.parametrize("size", [336, {"shortest_edge": 336}])
def test_a_crop(tmp_path, size):
    found = read(tmp_path, CLIP, {"size": size, "crop_size": 336, "do_center_crop": True, "resample": 3})
    assert (found.side_px, found.fit) == (336, "crop")
    found = read(tmp_path, CLIP, {"size": size, "crop_size": {"height": 336, "width": 336}})
    assert (found.side_px, found.fit) == (336, "crop")


def test_a_processor_config_of_transformers_5(tmp_path):
    values = {"image_processor": {"size": {"height": 96, "width": 96}, "rescale_factor": 0.00392156862745098}}
    assert read(tmp_path, VIT, values, "processor_config.json").side_px == 96


@pytest.mark.parametrize("square", [VIT, CLIP, VIT.sized(64)])
def test_what_is_written_is_read_again(tmp_path, square):
    for name, values in square.files().items():
        (tmp_path / name).write_text(json.dumps(values))
    family = PublishedSquare(side_px=8, patch=square.patch, normalize=HALF, makers=square.makers)
    assert family.read(tmp_path) == square


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": {"height": 224, "width": 200}}, "an object that states a square"),
        ({"size": {"longest_edge": 224}}, "an object that states a square"),
        ({"size": 0}, "a whole number"),
        ({"size": {"shortest_edge": 224}}, "without a crop"),
        ({"size": 256, "crop_size": 224, "do_center_crop": True}, "one side for both"),
        ({"do_normalize": False}, "do_normalize=False is not supported"),
        ({"rescale_factor": 0.5}, "rescale_factor=0.5 is not supported"),
        ({"resample": 0}, "resample is 0"),
        ({"resample": [3]}, r"resample is \[3\]"),
        ({"image_mean": [0.5]}, "expected three numbers"),
        ({"do_resise": True}, "unknown setting 'do_resise'.*'do_resize'"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, VIT, values)


def test_a_folder_without_settings(tmp_path):
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json does not exist"):
        VIT.read(tmp_path)
