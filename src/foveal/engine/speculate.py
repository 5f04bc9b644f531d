"""Guesses at the next tokens by looking them up in what was already said (prompt lookup).

Text about a document repeats it. Where the last tokens have come before, those that followed them then are guessed to
follow now; the model scores all guesses in one pass, and only what it would have chosen itself is kept.
"""

from collections.abc import Sequence

LONGEST = 4
SHORTEST = 2
"""Lengths of the ends that are looked up: a longer match is a better guess, one of a single token is hardly any."""


class Lookup:
    """Where each short run of tokens was last seen in one sequence."""

    def __init__(self, banned: frozenset[int]) -> None:
        self._banned = banned
        self._after: dict[tuple[int, ...], int] = {}  # run of tokens -> index behind its last occurrence but this one
        self._read = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `tokens`, of which those of an earlier call are the beginning."""
        end = len(tokens)
        for stop in range(max(self._read, SHORTEST), end):  # the end itself is what is looked up
            for size in range(SHORTEST, min(LONGEST, stop) + 1):
                self._after[tuple(tokens[stop - size : stop])] = stop
        self._read = max(self._read, end)
        for size in range(min(LONGEST, end), SHORTEST - 1, -1):
            found = self._after.get(tuple(tokens[end - size : end]))
            if found is not None:
                guessed = list(tokens[found : found + most])
                stop = next((i for i, token in enumerate(guessed) if token in self._banned), len(guessed))
                return guessed[:stop]
        return []
