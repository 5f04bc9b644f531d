"""Reading answers in words, and figures with their uncertainty."""

import re
from collections.abc import Iterable, Sequence

from foveal.core.box import Box


def interval(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, given the sum of scores in 0..1 and their number."""
    if count == 0:
        return 0.0, 1.0
    p = right / count
    centre, spread = p + z * z / (2 * count), z * ((p * (1 - p) + z * z / (4 * count)) / count) ** 0.5
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


class Mentions:
    """Finds names in a text, the longest first, so that "fire truck" is neither "fire" nor "truck".

    Args:
        forms: written form (a name or its plural) -> name.
    """

    def __init__(self, forms: dict[str, str]) -> None:
        self.forms = {form.lower(): name for form, name in forms.items()}
        longest = sorted(self.forms, key=lambda f: (-len(f), f))
        self._pattern = re.compile(r"(?<!\w)(" + "|".join(map(re.escape, longest)) + r")(?!\w)")

    def __call__(self, text: str) -> list[str]:
        """Names in the order in which the text has them, repeated ones too."""
        return [name for name, _ in self.places(text)]

    def places(self, text: str) -> list[tuple[str, int]]:
        """The same with the index at which each written form ends."""
        return [(self.forms[m.group()], m.end()) for m in self._pattern.finditer(text.lower())]


_NUMBER_WORDS = {"no": 0, "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


def number(text: str) -> int | None:
    """The first number of a text, in digits or as a word; "no" counts as 0."""
    found = re.search(r"\d+|\b(?:" + "|".join(_NUMBER_WORDS) + r")\b", text.lower())
    if found is None:
        return None
    word = found.group()
    return int(word) if word.isdigit() else _NUMBER_WORDS[word]


def first_of(text: str, words: Iterable[str]) -> str | None:
    """Which of `words` a text has first."""
    found = re.search(r"\b(" + "|".join(map(re.escape, words)) + r")\b", text.lower())
    return found.group(1) if found else None


def matched(found: Sequence[Box], wanted: Sequence[Box], least_iou: float) -> int:
    """How many of `wanted` are met by a box of their own with at least this overlap, best pairs first."""
    pairs = sorted(((f.iou(w), i, j) for i, f in enumerate(found) for j, w in enumerate(wanted)), key=lambda p: -p[0])
    used_found: set[int] = set()
    used_wanted: set[int] = set()
    for overlap, i, j in pairs:
        if overlap >= least_iou and i not in used_found and j not in used_wanted:
            used_found.add(i)
            used_wanted.add(j)
    return len(used_wanted)


def f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two lists of names as multisets."""
    if not found and not wanted:
        return 1.0
    common = sum(min(found.count(n), wanted.count(n)) for n in set(wanted))
    return 2 * common / (len(found) + len(wanted))
