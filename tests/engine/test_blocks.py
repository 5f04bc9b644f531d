"""Memory of keys and values: no block is lost, no bound is passed, and what is found again is what was left there."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.errors import FovealError
from foveal.core.packed import Packed
from foveal.engine.blocks import BlockPool
from foveal.engine.options import EngineOptions
from foveal.engine.prefix import chain
from foveal.engine.request import Generation, Sampling
from foveal.engine.scheduler import Scheduler
from foveal.engine.task import Task
from foveal.engine.vision_cache import VisionCache
from foveal.language.cache import Store

BLOCK = 4
DEPTH = 2


def write(store, tokens):
    """Leaves each token's id in every layer, in two tensors of different sizes."""
    new = torch.tensor(tokens, dtype=torch.float32)
    for layer in range(DEPTH):
        store.write(layer, new[:, None, None].expand(-1, 2, 3) + layer, new[:, None, None].expand(-1, 2, 1) - layer)
    store.length += len(tokens)


def content(store, start, stop):
    """The ids that `write` left, checked in every place."""
    found = None
    for layer, (large, small) in enumerate(store.view(start, stop)):
        ids = (small[0, :, 0] + layer).tolist()
        assert torch.equal(large, small.expand(-1, -1, 3) + 2 * layer)
        assert found in (None, ids)
        found = ids
    return found


def keys_of(tokens):
    ids = np.array(tokens, dtype=np.int64)
    return chain(b"", ids, np.arange(len(ids))[None], BLOCK)


def filled(tokens, pool):
    count = pool.blocks(len(tokens))
    assert pool.reserve(count)
    store = Store(DEPTH, capacity=count * BLOCK, slabs=pool.slabs)
    write(store, tokens)
    pool.hold(store, keys_of(tokens), 0)
    return store


def end(store, tokens, pool):
    pool.release(pool.blocks(len(tokens)))
    pool.leave(store, keys_of(tokens))


def test_a_block_lives_in_stores_then_in_a_piece():
    pool = BlockPool(8, BLOCK)
    tokens = list(range(10))
    first, second = filled(tokens, pool), filled(tokens[:8], pool)
    assert (pool.working, pool.kept, pool.free) == (5, 0, 3)
    (block, _) = pool.match(keys_of(tokens))
    assert block.holders == [first, second]
    end(first, tokens, pool)
    assert block.holders == [second]
    assert pool.kept == 0  # the second store still has it
    end(second, tokens[:8], pool)
    assert block.holders == []
    assert (pool.working, pool.kept, pool.free) == (0, 2, 6)
    again = Store(DEPTH, capacity=12)
    pool.load(again, pool.match(keys_of([*range(8), 99, 98, 97, 96])))
    assert content(again, 0, 8) == tokens[:8]
    assert pool.kept_bytes == 2 * BLOCK * DEPTH * 8 * 4


def test_pieces_give_way_the_least_recently_used_first():
    pool = BlockPool(6, BLOCK)
    for first in (0, 100, 200):
        tokens = list(range(first, first + 8))
        end(filled(tokens, pool), tokens, pool)
    assert (pool.kept, pool.free) == (6, 0)
    assert len(pool.match(keys_of(range(8)))) == 2  # used again
    assert pool.reserve(3)
    assert len(pool.match(keys_of(range(100, 108)))) == 0
    assert len(pool.match(keys_of(range(200, 208)))) == 1  # its end went first
    assert len(pool.match(keys_of(range(8)))) == 2
    assert not pool.reserve(4)
    assert pool.working == 3
    pool.release(3)
    pool.clear()
    assert (pool.kept, pool.free) == (0, 6)
    with pytest.raises(FovealError, match="1 blocks come back but 0 are in use"):
        pool.release(1)


def test_a_piece_that_a_store_holds_goes_before_others():
    pool = BlockPool(6, BLOCK)
    for first in (0, 100):
        tokens = list(range(first, first + 8))
        end(filled(tokens, pool), tokens, pool)
    assert pool.reserve(2)
    store = Store(DEPTH, capacity=8)
    pool.load(store, pool.match(keys_of(range(100, 108))))
    assert pool.reserve(2)  # takes the pieces of 100 to 107, although 0 to 7 are older
    assert len(pool.match(keys_of(range(8)))) == 2
    (one, two) = pool.match(keys_of(range(100, 108)))
    assert one.piece is two.piece is None
    other = Store(DEPTH, capacity=8)
    pool.load(other, [one, two])
    assert content(other, 0, 8) == list(range(100, 108))


def consistent(scheduler):
    pool = scheduler.pool
    assert pool.working == sum(task.blocks for task in scheduler.running)
    assert pool.working + pool.kept <= pool.total
    assert not [t for t in scheduler.waiting if t.store is not None or t.blocks or t.held]
    holders = [store for block in pool._blocks.values() for store in block.holders]
    stores = [task.store for task in scheduler.running]
    assert all(any(h is s for s in stores) for h in holders)
    assert len(holders) == sum(task.held for task in scheduler.running)
    for key, block in pool._blocks.items():
        assert block.holders or block.piece is not None
        assert (block.piece is not None) == (key in pool._idle or key in pool._doubled)
        assert bool(block.holders) == (key not in pool._idle)
    for task in scheduler.running:
        assert task.store.capacity == task.blocks * BLOCK
        if task.computed:
            assert content(task.store, 0, task.computed) == task.tokens[: task.computed]


requests = st.tuples(
    st.integers(1, 30),  # tokens of the prompt
    st.integers(1, 12),  # tokens of the answer
    st.integers(0, 3),  # which beginning it shares
    st.integers(0, 20),  # the step before which it comes
    st.none() | st.integers(0, 40),  # the step before which it is aborted
)


@settings(max_examples=40)
@given(
    st.lists(requests, min_size=1, max_size=12),
    st.integers(11, 26),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_random_requests_leave_nothing_behind(arriving, total, step_tokens, most, guessing):
    """Arrivals, aborts, preemption, hits and rejected guesses; tokens are found where they were left."""
    options = EngineOptions(step_tokens=step_tokens, max_requests=most, block_tokens=BLOCK, speculate=guessing)
    scheduler = Scheduler(options, BlockPool(total, BLOCK), VisionCache(0), depth=DEPTH)
    tasks = []
    for number, (length, answer, beginning, _, _) in enumerate(arriving):
        prompt = [100 * beginning + i for i in range(length)]
        task = Task(
            id=str(number),
            index=0,
            arrival=number,
            packed=empty(length),
            generation=Generation(sampling=Sampling(), prompt=prompt, max_tokens=answer),
            keys=keys_of(prompt),
        )
        scheduler.check(task.most_tokens, 1)
        tasks.append(task)
    step, left = 0, set(range(len(tasks)))
    while left:
        for number, (_, _, _, comes, aborted) in enumerate(arriving):
            if comes == step and number in left:
                scheduler.add(tasks[number])
            if aborted == step and comes <= step and number in left:
                scheduler.drop(tasks[number])
                left.discard(number)
            if aborted is not None and aborted < comes:
                left.discard(number)
        slices = scheduler.schedule()
        consistent(scheduler)
        assert len({id(piece.task) for piece in slices}) == len(slices)
        assert sum(piece.stop - piece.start + len(piece.guess) for piece in slices) <= step_tokens
        assert slices or not (scheduler.running or scheduler.waiting)
        for piece in slices:
            task = piece.task
            write(task.store, piece.tokens.tolist())
            scheduler.computed(task)
            if piece.scored:
                task.say(task.arrival * 1000 + len(task.tokens), frozenset())
                task.store.length = len(task.tokens) - 1
                if task.generation.finish_reason is not None:
                    scheduler.drop(task)
                    left.discard(task.arrival)
        consistent(scheduler)
        step += 1
        assert step < 5000
    assert (scheduler.pool.working, scheduler.running, scheduler.waiting) == (0, [], [])
    assert all(len(t.generation.ids) == t.generation.max_tokens for t in tasks if t.generation.finish_reason)


def empty(length):
    return Packed(
        tokens=np.zeros(length, np.int64),
        positions=np.arange(length)[None],
        starts=np.array([0, length]),
        deltas=np.zeros(1, np.int64),
        patches=np.zeros((0, 3), np.float32),
        grids=np.zeros((0, 3), np.int64),
    )


def test_keys_say_everything_that_comes_before():
    tokens = np.arange(16)
    marks = np.arange(16)[None]
    plain = chain(b"weights", tokens, marks, BLOCK)
    assert len(plain) == len(set(plain)) == 4
    assert chain(b"weights", tokens[:11], marks[:, :11], BLOCK) == plain[:2]
    assert chain(plain[1], tokens[8:], marks[:, 8:], BLOCK, start=8) == plain[2:]
    for other in (
        chain(b"others", tokens, marks, BLOCK),
        chain(b"weights", np.array([7, *tokens[1:]]), marks, BLOCK),
        chain(b"weights", tokens, marks + np.arange(16), BLOCK),
    ):
        assert not set(plain[1:]) & set(other)


def test_keys_of_pictures():
    from foveal.core.packed import Run

    tokens, marks = np.full(16, 9), np.arange(16)[None]
    runs = (Run(start=2, length=3, medium=0), Run(start=6, length=6, medium=1))
    both = chain(b"", tokens, marks, BLOCK, runs=runs, contents=[b"a", b"b"])
    other = chain(b"", tokens, marks, BLOCK, runs=runs, contents=[b"a", b"c"])
    assert both[0] == other[0]
    assert not set(both[1:]) & set(other)
    rest = chain(both[1], tokens[8:], marks[:, 8:], BLOCK, start=8, runs=runs, contents=[b"a", b"b"])
    assert rest == both[2:]
    moved = (Run(start=2, length=3, medium=0), Run(start=7, length=6, medium=1))
    assert both[1:] != chain(b"", tokens, marks, BLOCK, runs=moved, contents=[b"a", b"b"])[1:]
