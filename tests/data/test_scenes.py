"""The scene maker: exact boxes, honest splits, the same picture for the same number."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveal.core.errors import ConfigError
from foveal.data.backgrounds import KINDS, background
from foveal.data.dense import class_names, dense_targets
from foveal.data.scenes import CELL_PX, GRIDS, SceneMaker, SceneSettings, _covered
from foveal.data.shapes import COLOURS, SHAPES, draw_shape
from foveal.data.sprites import SpriteSet

TINY = Path(__file__).parent.parent / "data_files" / "sprites.npz"
SETTINGS = SceneSettings(objects=(2, 4), shape_share=0.3, backgrounds=20)


@pytest.fixture(scope="module")
def sprites() -> SpriteSet:
    return SpriteSet.load(TINY)


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, warp=0.1, erase=0.3, wild=0.5)])
def test_scenes_hold_what_they_say(sprites: SpriteSet, settings: SceneSettings) -> None:
    maker = SceneMaker(sprites, "train", settings)
    kinds = set()
    for index in range(60):
        scene = maker.make(index)
        kinds.add(scene.kind)
        width, height = scene.size
        assert (width // CELL_PX, height // CELL_PX) in GRIDS
        assert scene.image.dtype == np.uint8 and scene.image.shape == (height, width, 3)
        assert 1 <= len(scene.objects) <= 5
        names = [o.name for o in scene.objects]
        assert len(set(names)) == (1 if scene.kind == "count" else len(names))
        for number, thing in enumerate(scene.objects, start=1):
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            rows, columns = np.nonzero(scene.owners == number)
            # Nothing of the object lies outside its box.
            assert rows.min() >= top and rows.max() < bottom and columns.min() >= left and columns.max() < right
            others = [o.box for o in scene.objects if o is not thing]
            assert all(_covered(thing.box, other) <= settings.overlap for other in others)
            assert bool(thing.colour) == (thing.name in SHAPES)
    assert kinds == {"single", "distinct", "count"}


def test_a_box_fits_tightly(sprites: SpriteSet) -> None:
    maker = SceneMaker(sprites, "test", replace(SETTINGS, shape_share=0.0))
    for index in range(40):
        scene = maker.make(index, kind="single")
        left, top, right, bottom = scene.objects[0].box
        rows, columns = np.nonzero(scene.owners)
        # The box ends at an opacity of 32 of 255, the owner's pixels at 128: a soft edge apart.
        assert rows.min() - top <= 3 and bottom - 1 - rows.max() <= 3
        assert columns.min() - left <= 3 and right - 1 - columns.max() <= 3


def test_the_same_number_is_the_same_scene(sprites: SpriteSet) -> None:
    one, two = SceneMaker(sprites, "train", SETTINGS), SceneMaker(sprites, "train", SETTINGS)
    two.make(3)
    a, b = one.make(7), two.make(7)
    np.testing.assert_array_equal(a.image, b.image)
    assert a.objects == b.objects
    assert not np.array_equal(one.make(8).image[:100, :100], a.image[:100, :100])
    other = SceneMaker(sprites, "train", SETTINGS, seed=1).make(7)
    assert other.objects != a.objects


def test_splits_never_share_a_picture(sprites: SpriteSet) -> None:
    shown = {
        split: {
            o.title + o.name
            for i in range(80)
            for o in SceneMaker(sprites, split, SETTINGS).make(i).objects
            if not o.colour
        }
        for split in ("train", "test")
    }
    assert shown["train"] and shown["test"] and not shown["train"] & shown["test"]


def test_wrong_settings_are_refused(sprites: SpriteSet) -> None:
    with pytest.raises(ConfigError, match="add up to 1"):
        SceneSettings(kinds=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="rising counts"):
        SceneSettings(objects=(4, 2))
    with pytest.raises(ConfigError, match="split"):
        SceneMaker(sprites, "validation")


def test_dense_targets_point_at_the_objects(sprites: SpriteSet) -> None:
    index = {n: i for i, n in enumerate(class_names(sprites.names))}
    maker = SceneMaker(sprites, "train", SETTINGS)
    for number in range(30):
        scene = maker.make(number)
        target = dense_targets([scene], index)
        width, height = scene.size
        assert len(target.thing) == (width // CELL_PX) * (height // CELL_PX)
        seen = {index[o.name] for o in scene.objects}
        assert set(target.thing[target.thing > 0].tolist()) == seen
        assert int(target.middle.sum()) <= len(scene.objects)
        full = target.thing > 0
        assert np.isfinite(target.box[full]).all() and np.isnan(target.box[~full]).all()
        boxes = {tuple(np.round(b, 4)) for b in target.box[full]}
        scale = np.array([width, height, width, height])
        assert boxes <= {tuple(np.round((np.array(o.box) / scale).astype(np.float32), 4)) for o in scene.objects}
        # A cell that an object fills lies in that object's box.
        x, y = target.place[full].T
        left, top, right, bottom = target.box[full].T
        slack = 0.5 * CELL_PX / min(width, height) + 1e-3
        assert ((x > left - slack) & (x < right + slack) & (y > top - slack) & (y < bottom + slack)).all()


@pytest.mark.parametrize("colour", COLOURS)
def test_shapes_have_the_colour_they_are_called_by(colour: str) -> None:
    random = np.random.default_rng(0)
    means = []
    for name in SHAPES:
        shape = draw_shape(random, name, colour)
        assert shape.rgba.shape == (112, 112, 4) and (shape.name, shape.colour) == (name, colour)
        middle = shape.rgba[50:70, 50:62].reshape(-1, 4)
        assert (middle[:, 3] == 255).all()
        means.append(middle[:, :3].mean(0))
    red, green, blue = np.mean(means, 0)
    rules = {
        "red": red > 2 * max(green, blue),
        "orange": red > green > blue and green > 80,
        "yellow": min(red, green) > 2 * blue,
        "green": green > 1.3 * max(red, blue),
        "blue": blue > 1.3 * max(red, green),
        "purple": min(red, blue) > 1.2 * green and blue >= red,
        "pink": red > green and red > 200 and blue > green - 40,
        "brown": 40 < red < 150 and red > green > blue,
        "black": max(red, green, blue) < 45,
        "white": min(red, green, blue) > 215,
    }
    assert rules[colour], (red, green, blue)


def test_backgrounds_differ_and_fill_the_range() -> None:
    pictures = [background(np.random.default_rng(i), 64) for i in range(40)]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 40
    for kind in set(KINDS):
        assert kind(np.random.default_rng(1), 48).shape == (48, 48, 3)
