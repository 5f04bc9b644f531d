"""From step numbers to packs."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.errors import ConfigError, InputError
from foveal.data.augment import Augmentation
from foveal.data.mixture import Mixture
from foveal.data.rows import DataError
from foveal.data.sample import Sample
from foveal.data.toy import PAINTS, ToySet
from foveal.train.batches import Feed, packed
from foveal.train.task import NextToken
from tests.helpers import training


def feed(world: int = 1, rank: int = 0, **changes: Any) -> Feed:
    stage = training.stage(**changes)
    processor = training.processor()
    task, processor = NextToken().fitted(processor, None)
    return Feed(stage, task, processor, rank=rank, world=world)


@given(st.lists(st.integers(1, 90), max_size=40), st.integers(60, 200))
def test_every_index_is_in_one_group_that_fits(lengths: list[int], room: int) -> None:
    groups = packed(lengths, room)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= room or len(group) == 1 for group in groups)
    # First-fit decreasing needs at most 11/9 of the fewest groups and one more.
    if lengths and max(lengths) <= room:
        assert len(groups) <= 11 / 9 * max(1, -(-sum(lengths) // room)) * 2 + 1


def test_packs_hold_the_samples_of_their_step() -> None:
    one = feed()
    seen = Counter[str]()
    for step in range(3):
        made = one.packs(step)
        wanted = [one.sample(n) for n in range(6 * step, 6 * step + 6)]
        names = [name for ids in made.ids for name in ids]
        assert sorted(names) == sorted(f"{s.set}:{s.id}" for s in wanted)
        assert all(size.tokens <= 160 for size in made.sizes) and len(made.packs) > 1
        assert [len(p) for p in made.packs] == [len(ids) for ids in made.ids]
        seen.update(names)
    assert sum(seen.values()) == 18


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_a_step_without_loss_or_repetition(world: int) -> None:
    alone = [name for ids in feed().packs(1).ids for name in ids]
    shared = [name for rank in range(world) for ids in feed(world, rank).packs(1).ids for name in ids]
    assert sorted(alone) == sorted(shared)


def test_with_several_ranks_every_pack_has_a_picture() -> None:
    text = Mixture([(ToySet("text", 5), 1.0)])
    assert all(size.media == 0 for size in feed(data=text).packs(0).sizes)
    for rank in (0, 1):
        made = feed(2, rank, data=text, max_tokens=100).packs(0)
        assert all(size.media == 1 for size in made.sizes)
        lone = feed(data=text, max_tokens=100)
        # The empty picture teaches nothing.
        assert sum(w[0] for w in made.weights) == sum(
            lone.task.weights(lone.piece(lone.sample(n)))[0] for n in range(rank, 6, 2)
        )
    # A process without a sample has an empty pack.
    idle = feed(8, 7, data=text).packs(0)
    assert idle.ids == ((),) and idle.weights == ((0.0,),) and idle.sizes[0].media == 1


def test_augmentation_belongs_to_the_number() -> None:
    def augment(sample: Any, random: np.random.Generator) -> Any:
        return replace(sample, id=f"{sample.id}/{random.integers(10**9)}")

    one, other = feed(augment=augment), feed(augment=augment, steps=50)
    assert one.sample(5).id == other.sample(5).id
    numbers = {one.sample(n).id.partition("/")[2] for n in range(20)}
    assert len(numbers) == 20
    assert feed(augment=augment, seed=1).sample(5).id != one.sample(5).id


def test_boxes_follow_their_pictures_into_the_packs() -> None:
    plain = feed(data=Mixture([(ToySet("find", 12), 1.0)]))
    changed = feed(
        data=plain.stage.data, augment=Augmentation(flip=0.5, crop=(0.4, 1.0), resize=(0.7, 1.4), jitter=0.1)
    )
    moved = 0
    for number in range(24):
        before, after = plain.sample(number), changed.sample(number)
        (box,) = after.boxes
        assert changed.sample(number).boxes == after.boxes
        moved += box.corners != before.boxes[0].corners
        # A circle and a square fill the middle of their boxes, and nothing else has their colour.
        paint = np.array(PAINTS[box.label.split()[0]])
        picture = np.asarray(after.media[0]["image"], dtype=int)
        x, y = (int((box.corners[i] + box.corners[i + 2]) / 2) for i in (0, 1))
        distances = {name: np.abs(picture[y, x] - np.array(p)).sum() for name, p in PAINTS.items()}
        assert np.abs(picture[y, x] - paint).sum() == min(distances.values())
        # What is learned is the box as it is then.
        height, width = picture.shape[:2]
        said = changed.processor.tokenizer.decode(changed.piece(after).tokens.tolist())
        corners = [round(v * 1000 / side) for v, side in zip(box.corners, (width, height) * 2, strict=True)]
        assert f"({corners[0]},{corners[1]}),({corners[2]},{corners[3]})" in said
    assert moved > 20


def test_unfit_samples_stop_or_are_left_out() -> None:
    with pytest.raises(InputError, match=r"sample '\d+' of set 'toy-find'.* more than a pack of max_tokens=40"):
        feed(max_tokens=40).packs(0)
    made = feed(max_tokens=40, unfit="skip").packs(0)
    assert len(made.skipped) + sum(map(len, made.ids)) == 6 and made.skipped
    with pytest.raises(InputError, match="max_tokens=40"):
        next(feed(max_tokens=40).steps(0, workers=2))


class Gaps:
    """Of six samples one has a record that cannot be read, and one a picture that does not exist."""

    def at(self, n: int) -> tuple[Any, int]:
        sample = ToySet("find", 12)[n % 12]
        if n == 1:
            raise DataError("set.jsonl, line 2: no record.")
        if n == 4:
            turn = {"role": "user", "content": [{"type": "image", "image": "/nowhere.png"}]}
            sample = replace(sample, messages=(turn, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}))
        return sample, 0


@pytest.mark.parametrize("augment", [None, Augmentation(resize=(0.8, 1.2))])
def test_samples_that_cannot_be_read_are_left_out_too(augment: Augmentation | None) -> None:
    made = feed(data=Gaps(), augment=augment, unfit="skip").packs(0)
    assert sum(map(len, made.ids)) == 4
    assert "line 2" in made.skipped[0] and "/nowhere.png" in made.skipped[1] and "sample '4'" in made.skipped[1]
    with pytest.raises(DataError, match="line 2"):
        feed(data=Gaps(), augment=augment).packs(0)


def test_a_stage_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="no data"):
        feed(data=None)


def test_marks_that_a_chat_lacks_become_words() -> None:
    """A question by `ref` alone, as grounding sets hold it, is asked in words where the chat has no mark for it."""
    picture = np.full((40, 56, 3), 120, np.uint8)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Here."}]}
    asked = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "ref", "ref": "the cat"}]}
    said = {"role": "user", "content": [asked["content"][0], {"type": "text", "text": "Where is the cat?"}]}
    ready = feed()
    packs = [
        ready.task.read(ready.processor, Sample(id="0", set="toy", messages=(question, answer)), ready.stage)
        for question in (asked, said)
    ]
    assert packs[0].tokens.tolist() == packs[1].tokens.tolist()
