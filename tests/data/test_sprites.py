"""Pictures, names, and the split of the pictures."""

from pathlib import Path

import numpy as np
import pytest

from foveal.core.errors import ConfigError, InputError
from foveal.data.sprites import ARTISTS, Sprite, SpriteSet, held_out_source, read_names, trim

TINY = Path(__file__).parent.parent / "data_files" / "sprites.npz"


def test_names_are_complete_and_unique() -> None:
    names = read_names()
    assert len(names) >= 200
    assert len({n.name for n in names}) == len(names) == len({n.code for n in names})
    for n in names:
        assert set(n.pictures) <= set(ARTISTS), n.name
        assert len({ARTISTS[s] for s in n.pictures}) >= 3, n.name
        assert n.name.isascii() and n.plural.isascii() and not n.chinese.isascii()


def test_every_name_holds_out_one_source() -> None:
    sprites = SpriteSet.load(TINY)
    for name in sprites.names:
        train = {s.source for s in sprites.pictures(name, "train")}
        test = {s.source for s in sprites.pictures(name, "test")}
        assert test == {sprites.held_out[name]}
        assert train and not train & test


def test_the_split_never_moves() -> None:
    sources = ["flat", "3d", "twemoji", "noto"]
    assert held_out_source("dog", sources) == held_out_source("dog", reversed(sources))
    assert {held_out_source(str(i), sources) for i in range(50)} == {"3d", "noto"}
    assert {held_out_source(str(i), ["flat", "twemoji"]) for i in range(50)} == {"flat", "twemoji"}
    with pytest.raises(InputError, match="two sources"):
        held_out_source("dog", ["noto", "noto"])


def test_saved_pictures_come_back(tmp_path: Path) -> None:
    sprites = SpriteSet.load(TINY)
    sprites.save(tmp_path / "copy.npz")
    copy = SpriteSet.load(tmp_path / "copy.npz")
    for a, b in zip(sprites.sprites, copy.sprites, strict=True):
        assert (a.name, a.source, a.title) == (b.name, b.source, b.title)
        np.testing.assert_array_equal(a.rgba, b.rgba)
    assert [p.name for p in tmp_path.iterdir()] == ["copy.npz"]


def test_wrong_files_and_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0_assets"):
        SpriteSet.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no pictures")
    with pytest.raises(ConfigError, match="no picture file"):
        SpriteSet.load(tmp_path / "text.npz")
    sprites = SpriteSet.load(TINY)
    with pytest.raises(InputError, match="did you mean 'dog'"):
        sprites.pictures("dogg", "train")
    with pytest.raises(InputError, match="unknown split"):
        sprites.pictures("dog", "tset")
    with pytest.raises(InputError, match="at least one"):
        SpriteSet([])


def test_trim_keeps_what_is_seen() -> None:
    rgba = np.zeros((9, 7, 4), np.uint8)
    rgba[2:5, 3:6, 3] = 200
    assert trim(rgba).shape == (3, 3, 4)
    with pytest.raises(InputError, match="transparent"):
        trim(np.zeros((4, 4, 4), np.uint8))


def test_sprite_knows_its_artist() -> None:
    sprite = Sprite(name="dog", source="noto-v1", title="dog-face", rgba=np.zeros((1, 1, 4), np.uint8))
    assert sprite.artist == "google"
