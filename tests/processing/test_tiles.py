"""Tiling: which canvas, which pixels, how many tokens, and what a folder may state."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.processing.intake import Knobs, VideoShape
from foveal.processing.messages import ImagePart, VideoPart
from foveal.processing.patches import HALF, Normalize
from foveal.processing.tiles import Tiles, best_canvas, fitted

SIZES = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2), (3, 3))
TILES = Tiles(candidates=tuple((w * 44, h * 44) for w, h in SIZES), patch=14, join=2, normalize=HALF)
SIDES = st.integers(1, 3000)


def opened(picture, *, count=1, **changes):
    knobs = Knobs(**changes.pop("knobs", {}))
    part = ImagePart(source=picture, **changes)
    return TILES.open(part, budget=MediaBudget(), knobs=knobs, count=count)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(SIDES, SIDES)
@settings(max_examples=40)
def test_no_candidate_shows_more_or_wastes_less(width, height):
    def shown(canvas):
        scale = min(canvas[0] / width, canvas[1] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    best = best_canvas((width, height), TILES.candidates)
    for canvas in TILES.candidates:
        assert shown(canvas) <= shown(best)
        if shown(canvas) == shown(best):
            assert canvas[0] * canvas[1] >= best[0] * best[1]
            if canvas[0] * canvas[1] == best[0] * best[1]:
                assert TILES.candidates.index(best) <= TILES.candidates.index(canvas)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 4), st.sampled_from([None, 44 * 44, 10_000, 99_999]))
@settings(max_examples=40)
def test_measuring_is_opening(width, height, count, most):
    picture = Image.new("RGB", (width, height), (10, 200, 30))
    measured = TILES.measure_image(width, height, knobs=Knobs(max_pixels=most), count=count)
    found = opened(picture, count=count, knobs={"max_pixels": most})
    medium = found.medium
    assert (medium.grid, medium.tokens, medium.view) == (measured.grid, measured.tokens, measured.view)
    across, down = found.extra["tiles"][0]
    assert medium.grid == (1 + across * down, 3, 3)
    assert found.patches.shape == (9 * (1 + across * down), 588)
    assert medium.tokens == 2 * 3 + 1 + down * 2 * (across * 2 + 1)
    assert TILES.cells(medium) == (1, 1, medium.tokens)
    if count > 2:
        assert (across, down) == (1, 1)
    if most is not None:
        assert across * down * 44 * 44 <= most


def test_views_are_fitted_centred_and_cut_row_by_row():
    picture = noise(90, 30)
    canvas = TILES.canvas(picture.size, most_px=None, count=1)
    views = TILES.views(picture, canvas)
    assert canvas == (132, 44)
    whole = np.asarray(views[0])
    assert whole.shape == (44, 44, 3)
    assert (whole[:14] == 127).all()
    assert (whole[-14:] == 127).all()
    expected = np.asarray(picture.resize((44, 15), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(whole[14:29], expected)
    local = np.asarray(picture.resize((132, 44), Image.Resampling.BICUBIC))
    for index, view in enumerate(views[1:]):
        np.testing.assert_array_equal(np.asarray(view), local[:, index * 44 : index * 44 + 44])
    two_rows = TILES.views(noise(88, 132), (88, 132))
    assert len(two_rows) == 7
    full = np.asarray(noise(88, 132))
    np.testing.assert_array_equal(np.asarray(two_rows[4]), full[44:88, 44:88])


def test_the_border_has_the_mean_colour_rounded_down():
    colours = Normalize(mean=(0.5, 0.25, 0.999), std=(0.5, 0.5, 0.5))
    view = replace(TILES, normalize=colours).views(noise(90, 30), (44, 44))[0]
    assert view.getpixel((0, 0)) == (127, 63, 254)


def test_patches_are_the_pixels():
    found = opened(noise(44, 44))
    view = np.asarray(noise(44, 44)).astype(np.float32)[:42, :42] / 255 * 2 - 1
    patch = view[14:28, 28:42].transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(found.patches[5], patch, atol=1e-6)
    np.testing.assert_allclose(found.patches[9 + 5], patch, atol=1e-6)


def test_a_full_context_makes_no_patches():
    part = ImagePart(source=noise(100, 50))
    found = TILES.open(part, budget=MediaBudget(), knobs=Knobs(), count=1, patches=False)
    assert found.patches.shape == (0, 588)
    assert found.medium.tokens == opened(noise(100, 50)).medium.tokens


@given(SIDES, SIDES, st.sampled_from(TILES.candidates))
@settings(max_examples=40)
def test_the_size_that_is_seen_is_pillows(width, height, canvas):
    from PIL import ImageOps

    if max(width, height) > 60 * min(width, height):
        return  # Pillow gives a side of 0 there
    assert fitted((width, height), canvas) == ImageOps.contain(Image.new("1", (width, height)), canvas).size


@given(st.integers(1, 60))
@settings(max_examples=40)
def test_pixels_for_tokens(tokens):
    found = TILES.pixels_for(tokens)
    fits = [c for c in TILES.candidates if TILES.tokens(c) <= tokens]
    if found is None:
        assert not fits
    else:
        canvases = [c for c in TILES.candidates if c[0] * c[1] <= found]
        assert all(TILES.tokens(c) <= tokens for c in canvases)
    assert TILES.pixel_range(images=True, videos=False) == (44 * 44, 9 * 44 * 44)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knobs": {"min_pixels": 100}}, "min_pixels=100: .*leave it out"),
        ({"min_pixels": 100}, "min_pixels=100"),
        ({"knobs": {"fps": 2.0}}, "fps=2.0: this family sees images only"),
        ({"max_pixels": 1000}, "max_pixels=1000 is less than one tile of 44 x 44 px"),
        ({"resized": (50, 50)}, "leave resized_width and resized_height out"),
    ],
)
def test_settings_without_meaning_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        opened(noise(50, 50), **changes)


def test_videos_are_refused():
    with pytest.raises(InputError, match="sees images only"):
        TILES.open(VideoPart(source=(noise(9, 9),)), budget=MediaBudget(), knobs=Knobs(), count=1)
    with pytest.raises(InputError, match="a video of 3 s"):
        TILES.measure_video(VideoShape(width=9, height=9, seconds=3.0), knobs=Knobs(), count=1)


def test_written_settings_are_read_again(tmp_path):
    other = replace(TILES, normalize=Normalize(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    for name, content in other.files().items():
        (tmp_path / name).write_text(json.dumps(content))
    assert TILES.read(tmp_path) == other
    assert TILES.read(tmp_path / "elsewhere") == TILES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize": False}, "normalize is False; this family computes only True"),
        ({"sft_format": "deepseekv2"}, "sft_format is 'deepseekv2'"),
        ({"image_token": "<img>"}, "image_token is '<img>'"),
        ({"patch_size": 16}, r"are \(44, 16, 2\), but config.json says \(44, 14, 2\)"),
        ({"candidate_resolutions": [[48, 48]]}, r"are \(48, 14, 2\)"),
        ({"candidate_resolutions": [[44, 44], [50, 44]]}, "whole numbers of tiles"),
        ({"candidate_resolutions": [[44, 88]]}, "one square tile"),
        ({"candidate_resolutions": [[44]]}, r"holds \[44\]"),
        ({"candidate_resolutions": 3}, "a list of .* is expected"),
        ({"image_mean": [0.5]}, "three numbers are expected"),
        ({"image_std": [0.5, 0.5, 0.0]}, "std above 0"),
    ],
)
def test_what_a_folder_must_not_state(tmp_path, change, message):
    content = TILES.files()["processor_config.json"] | change
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        TILES.read(tmp_path)


def test_a_tile_smaller_than_a_patch_is_refused():
    with pytest.raises(ConfigError, match="holds no patch"):
        replace(TILES, patch=45)
