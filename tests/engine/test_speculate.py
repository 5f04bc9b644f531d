"""Guesses by looking up what was said."""

from foveal.engine.speculate import Lookup


def test_what_followed_before_is_guessed():
    lookup = Lookup(frozenset({99}))
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2], 3) == [3, 4, 5]
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2, 3], 2) == [4, 5]
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2, 3, 9], 2) == []
    assert lookup.guess([1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3], 4) == [9, 1, 2, 3]  # the last time counts


def test_longer_matches_come_first():
    lookup = Lookup(frozenset())
    assert lookup.guess([7, 1, 2, 50, 8, 1, 2, 60, 7, 1, 2], 1) == [50]


def test_what_may_not_be_said_is_not_guessed():
    lookup = Lookup(frozenset({99}))
    assert lookup.guess([1, 2, 3, 99, 99, 1, 2], 4) == [3]
    assert lookup.guess([1, 2, 3, 99, 99, 1, 2, 3], 4) == []


def test_nothing_is_guessed_from_nothing():
    lookup = Lookup(frozenset())
    for tokens in ([], [1], [1, 1], [1, 2, 3]):
        assert lookup.guess(tokens, 3) == []
