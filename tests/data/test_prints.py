"""Pictures that are nearly the same are found, others are not, and the index finds what comparing all would find."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveal.data.prints import NEAR_BITS, NearIndex, Print, near, print_of, text_print
from foveal.data.scenes import SceneMaker, SceneSettings
from foveal.data.sprites import SpriteSet

TINY = Path(__file__).parent.parent / "data_files" / "sprites.npz"


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    maker = SceneMaker(SpriteSet.load(TINY), "train", SceneSettings(shape_share=0.4, objects=(2, 4), backgrounds=10))
    return [Image.fromarray(maker.make(i).image) for i in range(60)]


def again(picture: Image.Image, quality: int, factor: float) -> Image.Image:
    size = round(picture.width * factor), round(picture.height * factor)
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return Image.open(file)


def test_compressed_and_resized_pictures_are_near(scenes: list[Image.Image]) -> None:
    for quality, factor, least in ((90, 1.0, 1.0), (60, 1.0, 0.98), (75, 0.7, 0.95), (75, 1.6, 0.98)):
        found = sum(near(print_of(p), print_of(again(p, quality, factor))) for p in scenes)
        assert found >= least * len(scenes), (quality, factor)


def test_different_pictures_are_not(scenes: list[Image.Image]) -> None:
    prints = [print_of(p) for p in scenes]
    assert not any(near(a, b) for i, a in enumerate(prints) for b in prints[:i])
    flat = [print_of(Image.new("RGB", (50, 40), colour)) for colour in ("red", "blue", "white", "black", "#808080")]
    assert {p.bits for p in flat} == {0}
    assert not any(near(a, b) for i, a in enumerate(flat) for b in flat[:i])
    assert near(flat[0], print_of(Image.new("RGB", (20, 70), "#fc0202")))


BITS = st.integers(0, 2**64 - 1)
FLIPS = st.lists(st.integers(0, 63), max_size=7).map(lambda places: sum(1 << p for p in set(places)))


@given(st.lists(st.tuples(st.sampled_from([0, 2**64 - 1, 0x0123456789ABCDEF]), FLIPS), min_size=1, max_size=30), BITS)
def test_the_index_finds_what_comparing_all_finds(made: list[tuple[int, int]], other: int) -> None:
    prints = [Print(bits=a ^ b, thumb=bytes(192)) for a, b in made] + [Print(bits=other, thumb=bytes(192))]
    index, kept = NearIndex(), list(dict.fromkeys(prints))
    for value in prints:
        assert index.prints[index.add(value)] == value
    assert index.prints == kept
    for value in prints:
        found = index.like(value)
        assert sorted(found) == [i for i, p in enumerate(kept) if (p.bits ^ value.bits).bit_count() <= NEAR_BITS]
        assert kept[found[0]] == value
    assert index.like(Print(bits=other, thumb=bytes([255]) * 192)) == []


def test_texts() -> None:
    same = text_print("Where is the dog?", ["1"])
    assert text_print("where  is the DOG", ["1"]) == same and text_print("Ｗｈｅｒｅ is the dog!", ["1"]) == same
    assert len({same, text_print("Where is the dog?"), text_print("Where is a dog?", ["1"])}) == 3
    assert np.asarray(print_of(Image.new("RGB", (9, 9), "white")).pixels).tolist() == [255] * 192
