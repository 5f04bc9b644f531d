"""Single pictures as packs, and what may not be one."""

import json

import numpy as np
import pytest
from PIL import Image

from foveal.core.errors import BudgetError, ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.processing.patches import HALF
from foveal.processing.pictures import PictureProcessing, PictureProcessor
from foveal.processing.square_files import PublishedSquare
from tests.helpers.pictures import odd_pictures

SQUARE = PublishedSquare(side_px=32, patch=8, normalize=HALF, resample=2, makers=("ViTImageProcessor", ""))
PROCESSOR = PictureProcessor(processing=PictureProcessing(vision=SQUARE))


def test_several_pictures_lie_end_to_end():
    pictures = odd_pictures()
    together = PROCESSOR.pictures(pictures)
    assert together.patches.shape == (len(pictures) * 16, 192)
    assert together.grids.tolist() == [[1, 4, 4]] * len(pictures)
    assert [m.sequence for m in together.media] == list(range(len(pictures)))
    alone = [PROCESSOR.pictures(p).patches for p in pictures]
    assert np.array_equal(together.patches, np.concatenate(alone))


def test_one_picture_or_several():
    array = np.zeros((4, 5, 3), np.uint8)
    assert not PictureProcessor.several(array)
    assert PictureProcessor.several(array[None])
    assert PictureProcessor.several([array])
    assert not PictureProcessor.several("file.png")
    assert not PictureProcessor.several(Image.fromarray(array))
    assert len(PROCESSOR.pictures(np.zeros((3, 4, 5, 3), np.uint8)).media) == 3


def test_another_side():
    assert PROCESSOR.pictures(odd_pictures()[:2], side_px=48).grids.tolist() == [[1, 6, 6]] * 2


def test_what_may_not_be():
    with pytest.raises(InputError, match="there is no picture"):
        PROCESSOR.pictures([])
    with pytest.raises(BudgetError, match="3 pictures at once; the budget is 2"):
        PROCESSOR.pictures(odd_pictures()[:3], budget=MediaBudget(media=2))
    with pytest.raises(InputError, match="side_px is 4"):
        PROCESSOR.pictures(odd_pictures()[:1], side_px=4)
    with pytest.raises(ConfigError, match="no text tower"):
        _ = PROCESSOR.captions


def test_files_are_given_back(tmp_path):
    text = json.dumps({"size": 64, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    (tmp_path / "preprocessor_config.json").write_text(text)
    found = PictureProcessor.from_folder(tmp_path, PictureProcessing(vision=SQUARE))
    assert found.files() == {"preprocessor_config.json": text}
    assert found.processing.vision.side_px == 64
    assert list(PROCESSOR.files()) == ["preprocessor_config.json"]
    assert not found.special_ids
