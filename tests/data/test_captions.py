"""Captioned scenes: every name once a turn, the same sample for the same number, and two splits that never meet."""

from pathlib import Path

import numpy as np
import pytest

from foveal.core.errors import InputError
from foveal.data.captions import CAPTIONS, CaptionedScenes
from foveal.data.scenes import CELL_PX
from foveal.data.sprites import SpriteSet

TINY = Path(__file__).parents[1] / "data_files" / "sprites.npz"
NAMES = ("apple", "car", "dog", "key")


@pytest.fixture(scope="module")
def sprites() -> SpriteSet:
    return SpriteSet.load(TINY)


def test_a_turn_shows_every_name_once_and_says_it(sprites: SpriteSet) -> None:
    scenes = CaptionedScenes(sprites, cells=2)
    orders = set()
    for turn in range(6):
        samples = [scenes.at(4 * turn + place) for place in range(4)]
        names = [scenes.name(4 * turn + place) for place in range(4)]
        assert sorted(names) == list(NAMES)
        assert [epoch for _, epoch in samples] == [turn] * 4
        said = [sample.messages[1]["content"][0]["text"] for sample, _ in samples]
        assert said == [CAPTIONS[turn % len(CAPTIONS)].format(name) for name in names]
        assert [sample.id for sample, _ in samples] == [str(4 * turn + place) for place in range(4)]
        orders.add(tuple(names))
    assert len(orders) > 1


def test_the_same_number_gives_the_same_picture(sprites: SpriteSet) -> None:
    one, other = (CaptionedScenes(sprites, names=["dog", "key"], cells=2, seed=5) for _ in range(2))
    other.picture(0)  # the order in which numbers are asked for changes nothing
    for n in (7, 3):
        assert one.picture(n).size == (2 * CELL_PX, 2 * CELL_PX)
        assert np.array_equal(np.asarray(one.picture(n)), np.asarray(other.at(n)[0].media[0]["image"]))
    assert not np.array_equal(np.asarray(one.picture(3)), np.asarray(CaptionedScenes(sprites, cells=2).picture(3)))


def test_held_out_pictures_are_those_of_the_split(sprites: SpriteSet) -> None:
    """The thing in a scene is a picture of its own split only: seen by who is asked for pictures."""
    asked: list[tuple[str, str]] = []
    real = sprites.pictures

    class Watched(SpriteSet):
        def pictures(self, name: str, split: str) -> list:  # type: ignore[type-arg]
            asked.append((name, split))
            return real(name, split)

    watched = Watched(sprites.sprites)
    scenes = CaptionedScenes(watched, "test", cells=2)
    names = [scenes.name(n) for n in range(8)]
    pictures = [scenes.picture(n) for n in range(8)]
    assert asked == [(name, "test") for name in names]
    train = CaptionedScenes(sprites, "train", cells=2)
    assert all(not np.array_equal(np.asarray(p), np.asarray(train.picture(n))) for n, p in enumerate(pictures))


def test_what_is_wrong_is_named(sprites: SpriteSet) -> None:
    with pytest.raises(InputError, match=r"no picture of 'kay'; .*key"):
        CaptionedScenes(sprites, names=["kay"])
    with pytest.raises(InputError, match="of no name"):
        CaptionedScenes(sprites, names=[])
    with pytest.raises(InputError, match="no caption"):
        CaptionedScenes(sprites, captions=[])
    with pytest.raises(InputError, match=r"'a dog' has 0 places for the name"):
        CaptionedScenes(sprites, captions=["a dog"])
