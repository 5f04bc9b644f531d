"""From step numbers to packs."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.errors import ConfigError, InputError
from foveal.data.mixture import Mixture
from foveal.data.sample import Sample
from foveal.data.toy import ToySet
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


def test_unfit_samples_stop_or_are_left_out() -> None:
    with pytest.raises(InputError, match=r"sample '\d+' of set 'toy-find'.* more than a pack of max_tokens=40"):
        feed(max_tokens=40).packs(0)
    made = feed(max_tokens=40, unfit="skip").packs(0)
    assert len(made.skipped) + sum(map(len, made.ids)) == 6 and made.skipped
    with pytest.raises(InputError, match="max_tokens=40"):
        next(feed(max_tokens=40).steps(0, workers=2))


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
