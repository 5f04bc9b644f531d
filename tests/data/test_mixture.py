"""Sample number n is a pure function of n; shares follow the weights; nothing is lost or repeated."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.errors import InputError
from foveal.data.mixture import Mixture, permuted
from foveal.data.sample import Sample, normal
from foveal.data.source import Chained, Listed, Source


def source(name: str, length: int) -> Listed:
    content = normal([{"role": "user", "content": "hello"}])
    return Listed(name, [Sample(id=f"{name}{i}", messages=content, set=name) for i in range(length)])


class Endless:
    """A source of any length whose samples are made when asked for."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = name, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return Sample(id=str(index), messages=(), set=self.name)


@given(st.integers(1, 300), st.integers(0, 50))
def test_permutation(length: int, key: int) -> None:
    assert sorted(permuted(i, length, key) for i in range(length)) == list(range(length))


def test_permutations_are_of_any_size_and_spread() -> None:
    far = 10**15
    there = [permuted(i, far, (1, "x", 0)) for i in range(2000)]
    assert len(set(there)) == 2000 and all(0 <= t < far for t in there)
    tenths = Counter(t * 10 // far for t in there)
    assert min(tenths.values()) > 140 and max(tenths.values()) < 260  # 200 expected, deviation 13
    # Over many keys every place is about equally likely, and neighbours do not stay neighbours.
    places = Counter(permuted(3, 7, key) for key in range(7000))
    assert min(places.values()) > 880 and max(places.values()) < 1120  # 1000 expected, deviation 29
    follows = sum(permuted(i + 1, 1000, 5) - permuted(i, 1000, 5) == 1 for i in range(999))
    assert follows < 8  # 1 expected


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_shares_follow_the_weights_at_every_moment(weights: list[float]) -> None:
    mixture = Mixture([(Endless(str(i), 10), w) for i, w in enumerate(weights)])
    counts = [0] * len(weights)
    bound = 0.5 if len(weights) < 3 else 2.0
    for n in range(300):
        counts[mixture.place(n).part] += 1
        for share, count in zip(mixture.shares, counts, strict=True):
            assert abs(count - share * (n + 1)) <= bound + 1e-9


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=5), st.integers(0, 9))
def test_epochs_run_through_every_sample_once(parts: list[tuple[int, int]], seed: int) -> None:
    mixture = Mixture([(Endless(str(i), length), w) for i, (length, w) in enumerate(parts)], seed=seed)
    seen = Counter((p.part, p.epoch, p.index) for p in map(mixture.place, range(400)))
    assert set(seen.values()) == {1}
    for part, (length, _) in enumerate(parts):
        epochs = [e for p, e, _ in seen if p == part]
        for epoch in range(max(epochs, default=0)):  # all but the last are complete
            assert epochs.count(epoch) == length


def test_any_world_size_sees_the_same_samples() -> None:
    mixture = Mixture([(source("a", 7), 2), (source("b", 5), 1), (source("c", 11), 0.5)], seed=3)
    batch, steps = 6, 20
    reference = [mixture.at(n)[0].id for n in range(batch * steps)]
    for world in (1, 2, 3, 4, 5):
        again = Mixture([(source("a", 7), 2), (source("b", 5), 1), (source("c", 11), 0.5)], seed=3)
        for step in range(steps):
            numbers = range(step * batch, (step + 1) * batch)
            ranks = [[again.at(n)[0].id for n in numbers[rank::world]] for rank in range(world)]
            assert Counter(i for r in ranks for i in r) == Counter(reference[step * batch : (step + 1) * batch])


def test_seeds_and_epochs_differ_and_numbers_have_no_end() -> None:
    orders = {
        tuple(Mixture([(source("a", 50), 1)], seed=seed).at(n + 50 * epoch)[0].id for n in range(50))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    assert Mixture([(source("a", 50), 1)]).at(50 * 10**18)[1] == 10**18
    # Another source beside it leaves a source's own order as it is.
    one, two = Mixture([(source("a", 9), 1)]), Mixture([(source("a", 9), 1), (source("b", 9), 1)])
    assert [one.at(n)[0].id for n in range(9)] == [s.id for s in (two.at(n)[0] for n in range(18)) if s.set == "a"]


def test_errors() -> None:
    a = source("a", 3)
    for parts, words in (
        ([], "no sources"),
        ([(a, 1.0), (source("a", 2), 1.0)], "two sources are called 'a'"),
        ([(a, 0.0)], "weight 0.0"),
        ([(a, float("nan"))], "weight nan"),
        ([(source("e", 0), 1.0)], "'e' has no samples"),
    ):
        with pytest.raises(InputError, match=words):
            Mixture(parts)
    with pytest.raises(InputError, match="count from 0"):
        Mixture([(a, 1.0)]).at(-1)


def test_chained_sources() -> None:
    chain = Chained("all", [source("a", 2), source("e", 0), source("b", 3)])
    assert isinstance(chain, Source) and [s.id for s in chain] == ["a0", "a1", "b0", "b1", "b2"]
    with pytest.raises(IndexError, match="numbers 0 to 4"):
        chain[5]
