"""1,000 random conversations of text, images and videos: ids, grids, positions and offsets as published.

Ids come from transformers' tokenizer on the published template's string, special tokens on. Positions come from
transformers where it follows the published rule, and everywhere from the rule spelt out in `tests.helpers.published`.
"""

import math

import numpy as np
import pytest

from tests.helpers import layouts, published
from tests.helpers.processing import processor

MIN_PX = 56 * 56
PROCESSOR = processor()


def image_grid(width, height):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    high, wide = smart_resize(height, width, factor=28, min_pixels=MIN_PX, max_pixels=12845056)
    return 1, high // 14, wide // 14


def video_grid(frames, width, height):
    """qwen-vl-utils' rule for few small frames: at most 768 tokens each, and no bound on all together is reached."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    high, wide = smart_resize(height, width, factor=28, min_pixels=MIN_PX, max_pixels=768 * 28 * 28)
    return math.ceil(frames / 2), high // 14, wide // 14


def expected_grids(messages):
    """(kind, grid) of every medium: 1 for an image, 2 for a video."""
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image":
                yield 1, image_grid(*part["image"].size)
            elif part["type"] == "video":
                yield 2, video_grid(len(part["video"]), *part["video"][0].size)


@pytest.mark.parametrize("part", range(10))
def test_a_hundred_layouts(part):
    pads = [PROCESSOR.tokenizer.special(name) for name in ("<|image_pad|>", "<|video_pad|>")]
    compared = 0
    for seed in range(part * 100, part * 100 + 100):
        rng = np.random.default_rng(seed)
        messages = layouts.conversation(rng)
        generate = bool(seed % 3)
        packed = PROCESSOR.process(messages, generate=generate, min_pixels=MIN_PX)

        grids = list(expected_grids(messages))
        assert packed.grids.tolist() == [list(g) for _, g in grids]
        assert [m.kind for m in packed.media] == [("image", "video")[kind - 1] for kind, _ in grids]
        assert len(packed.patches) == sum(math.prod(g) for _, g in grids)

        counts = [math.prod(g) // 4 for _, g in grids]
        text = published.expanded(published.string(messages, generate=generate), counts)
        assert packed.tokens.tolist() == published.ids(text)

        kinds = [pads.index(i) + 1 if i in pads else 0 for i in packed.tokens.tolist()]
        positions, delta = published.rule_positions(kinds, [g for _, g in grids])
        np.testing.assert_array_equal(packed.positions, positions)
        assert packed.deltas.tolist() == [delta]
        if all(t <= max(h, w) // 2 for _, (t, h, w) in grids):
            theirs, their_delta = published.library_positions(kinds, grids)
            np.testing.assert_array_equal(packed.positions, theirs)
            assert delta == their_delta
            compared += 1
    assert compared >= 50, "most layouts are ones in which transformers follows the published rule"
