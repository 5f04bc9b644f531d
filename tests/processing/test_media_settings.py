import json
import shutil

import pytest

from foveal.core.errors import ConfigError
from foveal.processing.media_settings import read_media_settings
from foveal.processing.resize import PatchGrid
from foveal.processing.video import Frames
from tests.helpers.tiny_tokenizer import FOLDER


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "model")
    return tmp_path / "model"


def change(folder, name, **changes):
    path = folder / name
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}))


def read(folder):
    return read_media_settings(folder, PatchGrid(min_px=1000, max_px=2000), Frames())


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_settings_as_transformers_5_writes_them(folder, name):
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    del values["min_pixels"], values["max_pixels"]
    values |= {
        "size": {"shortest_edge": 784, "longest_edge": 99999}, "do_resize": True, "resample": 3, "do_rescale": True,
        "rescale_factor": 0.00392156862745098, "do_convert_rgb": True, "do_normalize": True, "crop_size": None,
        "data_format": "channels_first", "some_new_field": None,
    }  # fmt: skip
    change(folder, name, **(values if name[0:3] == "pre" else {"image_processor": values, "processor_class": "x"}))
    assert (read(folder)[0].min_px, read(folder)[0].max_px) == (784, 99999)


def test_what_transformers_writes_is_read(folder, tmp_path):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    made = Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 50_000}, patch_size=16)
    (folder / "preprocessor_config.json").unlink()
    made.save_pretrained(folder)
    found = read(folder)[0]
    assert (found.min_px, found.max_px, found.patch) == (784, 50_000, 16)


def test_limits_of_video_frames(folder):
    change(folder, "video_preprocessor_config.json", size={"shortest_edge": 3136, "longest_edge": 12845056})
    assert read(folder)[2] == Frames(), "limits of images that transformers copied say nothing about video"
    change(
        folder,
        "video_preprocessor_config.json",
        size={"shortest_edge": 4000, "longest_edge": 90000},
        fps=1,
        max_frames=64,
    )
    found = read(folder)[2]
    assert (found.frame_min_px, found.frame_max_px, found.fps, found.max_frames) == (4000, 90000, 1.0, 64)
    change(folder, "video_preprocessor_config.json", max_video_tokens=1000)
    assert read(folder)[2].total_px == int(1000 * 28 * 28 * 0.9)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"do_resize": False}, "do_resize=False is not supported; expected True"),
        ({"do_center_crop": True}, "do_center_crop=True is not supported"),
        ({"resample": 2}, "resample=2 is not supported; expected 3"),
        ({"rescale_factor": 0.5}, "rescale_factor=0.5 is not supported"),
        ({"max_pixel": 3}, "unknown setting 'max_pixel'=3.*did you mean 'max_pixels'"),
        ({"min_pixels": "3"}, "min_pixels='3'; expected a whole number"),
        ({"min_pixels": 0}, "min_pixels=0"),
        ({"max_pixels": 100}, "max_px=100"),
        ({"patch_size": 14.5}, "patch_size=14.5"),
        ({"size": {"height": 224, "width": 224}}, "both areas in pixels"),
        ({"size": 224}, "both areas in pixels"),
        ({"image_mean": [0.5]}, "image_mean=.* three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "std above 0"),
        ({"image_processor_type": "CLIPImageProcessor"}, "is of 'CLIPImageProcessor'"),
    ],
)
def test_settings_of_images_that_are_not_supported(folder, changes, error):
    change(folder, "preprocessor_config.json", **changes)
    with pytest.raises(ConfigError, match=error) as caught:
        read(folder)
    assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"patch_size": 16}, "patch_size=16, but images have 14"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean=.*but images have"),
        ({"fps": -1}, "fps"),
        ({"min_frames": 900}, "min_frames=900 is above max_frames=768"),
        ({"frames": 3}, "unknown setting 'frames'"),
    ],
)
def test_settings_of_videos_that_are_not_supported(folder, changes, error):
    change(folder, "video_preprocessor_config.json", **changes)
    with pytest.raises(ConfigError, match=error) as caught:
        read(folder)
    assert "video_preprocessor_config.json" in str(caught.value)


def test_errors_name_the_file_that_was_read(folder):
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    change(folder, "processor_config.json", image_processor={**values, "resample": 2})
    with pytest.raises(ConfigError, match=r"[/\\]processor_config\.json: image_processor: resample=2"):
        read(folder)
