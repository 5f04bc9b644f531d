"""The size at which a family's pictures are seen, and settings of runs."""

from pathlib import Path

import pytest

from foveal.core.errors import ConfigError
from foveal.train.plan import outline
from foveal.train.run import sized
from foveal.train.stage import Pixels
from foveal.train.tiny import tiny
from tests.helpers import training


@pytest.mark.parametrize(
    ("family", "pixels", "complaint"),
    [
        ("qwen2_vl", Pixels(side_px=224), r"qwen2_vl sees pictures of any size; set min_px and max_px instead"),
        ("deepseek_vl2", Pixels(side_px=224), r"deepseek_vl2 sees pictures of any size"),
        ("deepseek_vl", Pixels(side_px=224), r"learns from pictures at the size of its checkpoint; leave `pixels` out"),
        ("clip", Pixels(side_px=336), r"stage toy: clip learns from pictures at the size of its checkpoint"),
        ("siglip", Pixels(max_px=3136), r"one size, so min_px and max_px mean nothing; leave `pixels` out"),
        ("qwen_vl", Pixels(max_px=3136), r"one size, so min_px and max_px mean nothing; set side_px instead"),
    ],
)
def test_sizes_that_a_family_does_not_have_are_named(family: str, pixels: Pixels, complaint: str) -> None:
    stage = training.stage(pixels=pixels)
    loaded = outline(training.run(Path(), stage, model=tiny(family)))
    with pytest.raises(ConfigError, match=complaint):
        sized(loaded, stage)


def test_sizes_that_a_family_has() -> None:
    loaded = outline(training.run(Path(), model=tiny("qwen_vl")))
    smaller = sized(loaded, training.stage(pixels=Pixels(side_px=224)))
    assert smaller.config.side_px == 224 and smaller.processor.processing.vision.side_px == 224
    loaded = outline(training.run(Path(), model=tiny("qwen2_vl")))
    for pixels in (None, Pixels(), Pixels(min_px=3136, max_px=50_176)):
        assert sized(loaded, training.stage(pixels=pixels)) is loaded


def test_what_one_stage_sets_counts_more_than_what_all_do() -> None:
    run = training.run(Path(), training.stage(name="one"), training.stage(name="two"))
    settings = {"train.augment.flip": 0.5, "two.augment": None, "train.steps": 9, "one.steps": 4, "train.warmup": 1}
    one, two = run.changed(settings).stages
    assert (one.steps, two.steps) == (4, 9)
    assert one.augment is not None and one.augment.flip == 0.5 and two.augment is None
