"""Toy sets: the same number always gives the same sample, and boxes lie where things were drawn."""

import numpy as np
import pytest

from foveal.core.errors import InputError
from foveal.data.source import Source
from foveal.data.toy import PAINTS, TASKS, ToySet, draw


def test_pictures_hold_what_their_things_say() -> None:
    seen = set()
    for number in range(30):
        toy = draw(number, side_px=64, most=3)
        pixels = np.asarray(toy.image)
        for thing in toy.things:
            left, top, right, bottom = thing.corners
            paint = PAINTS[thing.name.split()[0]]
            found = np.argwhere((pixels == paint).all(-1))
            assert found.min(0).tolist() == [top, left] or len(toy.things) > 1
            assert tuple(pixels[(top + bottom) // 2, (left + right) // 2]) == paint
        names = [thing.name for thing in toy.things]
        assert len(set(names)) == len(names)
        seen |= {len(names)}
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("task", [*TASKS, "text"])
def test_samples_are_functions_of_their_number(task: str) -> None:
    one, other = ToySet(task, 8), ToySet(task, 8)
    assert isinstance(one, Source)
    for index in (0, 7):
        a, b = one[index], other[index]
        assert a.id == b.id and len(a.media) == (0 if task == "text" else 1)
        assert [m["content"][-1] for m in a.messages] == [m["content"][-1] for m in b.messages]
        for x, y in zip(a.media, b.media, strict=True):
            assert x["image"].tobytes() == y["image"].tobytes()
    assert ToySet(task, 8, seed=1)[3].messages != one[3].messages


def test_unknown_tasks_name_neighbours() -> None:
    with pytest.raises(InputError, match="did you mean 'caption'"):
        ToySet("captoin", 4)
    with pytest.raises(IndexError):
        ToySet("find", 4)[4]
