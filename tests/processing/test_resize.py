"""Processed sizes against transformers' function and against the facts known of qwen-vl-utils."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from foveal.core.errors import ConfigError, InputError
from foveal.processing.resize import PatchGrid

sides = st.integers(1, 6000)
CLASS_LIMIT = 28 * 28 * 1280


def test_sizes_equal_transformers_on_3000_random_pictures():
    rng = random.Random(0)
    compared = 0
    while compared < 3000:
        width, height = (int(2 ** rng.uniform(0, 13)) for _ in range(2))
        if max(width, height) / min(width, height) > 200:
            continue
        patch, merge = rng.choice([(14, 2), (14, 2), (16, 2), (8, 1)])
        factor = patch * merge
        low = rng.choice([factor**2, 4 * factor**2, 3136, 100_000])
        high = rng.choice([low, low * 3, CLASS_LIMIT, 12845056])
        if not factor**2 <= high >= low:
            continue
        grid = PatchGrid(patch=patch, merge=merge, min_px=low, max_px=high)
        expected = smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
        assert grid.size(width, height) == expected[::-1], (width, height, grid)
        compared += 1


# (width, height) -> processed (width, height). Recorded from qwen-vl-utils 0.0.14 with its own limits, 4 and 16384
# tokens, unless limits are given; it needs torchvision, which is why it is not called here.
RECORDED = [
    ((200, 1), {}, (196, 28)),
    ((1, 200), {}, (28, 196)),
    ((2000, 14), {}, (1988, 28)),
    ((1, 1), {}, (56, 56)),
    ((70, 42), {}, (56, 56)),
    ((640, 480), {}, (644, 476)),
    ((4032, 3024), {}, (4032, 3024)),
    ((8000, 6000), {}, (4116, 3080)),
    ((640, 480), {"min_px": 3136, "max_px": 3136}, (56, 28)),
    ((1000, 30), {"min_px": 3136, "max_px": 784 * 1280}, (1008, 28)),
    ((333, 777), {"min_px": 3136, "max_px": 784 * 64}, (140, 336)),
]


@pytest.mark.parametrize(("picture", "limits", "processed"), RECORDED)
def test_sizes_equal_qwen_vl_utils(picture, limits, processed):
    grid = PatchGrid(variant="qwen_vl_utils", max_px=16384 * 784)
    assert grid.size(*picture, **limits) == processed


def test_the_two_published_rules_differ_on_thin_pictures():
    assert PatchGrid().size(200, 1) == (812, 28)
    assert PatchGrid(variant="qwen_vl_utils").size(200, 1) == (196, 28)
    assert PatchGrid().size(640, 480, min_px=1, max_px=784) == (28, 28)
    with pytest.raises(InputError, match="leaves no pixel"):
        PatchGrid(variant="qwen_vl_utils").size(640, 480, min_px=1, max_px=784)


@given(width=sides, height=sides, variant=st.sampled_from(["transformers", "qwen_vl_utils"]))
def test_processed_sizes_keep_limits_and_shape(width, height, variant):
    grid = PatchGrid(variant=variant, max_px=CLASS_LIMIT)
    if max(width, height) / min(width, height) > 200:
        with pytest.raises(InputError, match="ratio above 200"):
            grid.size(width, height)
        return
    w, h = grid.size(width, height)
    assert w % 28 == h % 28 == 0
    assert w >= 28
    assert h >= 28
    assert w * h >= grid.min_px or variant == "qwen_vl_utils"
    thin = min(w, h) == 28
    assert w * h <= grid.max_px or thin
    if min(w, h) >= 280:  # each side is off by less than a merge group
        assert 0.75 < (w / h) / (width / height) < 1.33
    assert grid.size(height, width) == (h, w)
    assert grid.tokens(grid.grid(w, h)) == w * h // 784


@given(width=sides, height=sides, tokens=st.integers(1, 20000))
def test_max_px_for_is_the_largest_limit_that_fits(width, height, tokens):
    grid = PatchGrid(min_px=784)
    if max(width, height) / min(width, height) > 200:
        return

    def spent(limit):
        return grid.tokens(grid.grid(*grid.size(width, height, max_px=limit)))

    try:
        limit = grid.max_px_for(tokens, width, height)
    except InputError:
        assert spent(784) > tokens
        return
    assert spent(limit) <= tokens
    assert limit == grid.max_px or spent(limit + 1) > tokens


def test_max_px_for_any_picture():
    grid = PatchGrid()
    limit = grid.max_px_for(1280)
    rng = np.random.default_rng(0)
    spent = [
        grid.tokens(grid.grid(*grid.size(int(w), int(h), max_px=limit))) for w, h in rng.integers(200, 4000, (500, 2))
    ]
    assert 1270 <= max(spent) <= 1280
    with pytest.raises(InputError, match="lower min_px"):
        grid.max_px_for(2)


def test_grid_counts_frames_in_pairs():
    grid = PatchGrid()
    assert grid.grid(56, 28) == (1, 2, 4)
    assert grid.grid(56, 28, frames=4) == (2, 2, 4)
    assert grid.grid(56, 28, frames=5) == (3, 2, 4)
    assert grid.tokens((3, 2, 4)) == 6
    with pytest.raises(InputError, match="multiples of 28"):
        grid.grid(57, 28)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_px": 5000, "max_px": 4000}, "above max_px"),
        ({"max_px": 20_000_000, "min_px": 0}, "at least 1"),
        ({"max_px": 783, "min_px": 1}, "less than one visual token"),
        ({"max_px": float("nan")}, "finite"),
    ],
)
def test_bad_limits(limits, message):
    with pytest.raises(InputError, match=message):
        PatchGrid().size(100, 100, **limits)


@pytest.mark.parametrize("fields", [{"patch": 0}, {"merge": -1}, {"min_px": 10, "max_px": 5}])
def test_bad_declarations(fields):
    with pytest.raises(ConfigError):
        PatchGrid(**fields)


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (201, 1), (1, 201)])
def test_impossible_pictures(size):
    with pytest.raises(InputError):
        PatchGrid().size(*size)
