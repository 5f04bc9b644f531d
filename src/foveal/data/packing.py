"""Packing: samples end to end in as few packs as fit a token budget.

A pack is no longer sequence: positions and attention are per sample (`core.packed.join`), so a sample's logits in a
pack are those it has alone.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from foveal.core.errors import ContextError, InputError
from foveal.core.packed import Packed, join

Overlong: TypeAlias = Literal["error", "skip"]
"""What becomes of a sample that no pack can hold."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Which samples go together: `bins` of indices, each ascending; `skipped` are those that no pack can hold."""

    bins: tuple[tuple[int, ...], ...]
    skipped: tuple[int, ...] = ()


def plan_packs(
    lengths: Sequence[int],
    max_tokens: int,
    *,
    overlong: Overlong = "error",
    names: Sequence[str] | None = None,
) -> Packing:
    """First-fit decreasing: the longest first, each into the first pack that has room (at most 11/9 of the fewest
    possible packs, and 6/9 of one more; Dósa 2007). The same lengths always give the same packs.

    Args:
        lengths: tokens of each sample.
        max_tokens: of a pack.
        overlong: "error", or "skip" to leave such samples out and tell so in `Packing.skipped`.
        names: of the samples, for the error.

    Raises:
        ContextError: a sample is longer than `max_tokens`.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; a pack must hold at least 1 token.")
    if overlong not in ("error", "skip"):
        raise InputError(f"overlong is {overlong!r}; expected 'error' or 'skip'.")
    skipped = tuple(i for i, n in enumerate(lengths) if n > max_tokens)
    if skipped and overlong == "error":
        i = skipped[0]
        raise ContextError(
            f"{names[i] if names else f'sample {i} of the step'} has {lengths[i]} tokens, a pack holds {max_tokens}. "
            "Raise max_tokens, lower max_pixels, or leave such samples out with overlong='skip'."
        )
    left_out = set(skipped)
    order = sorted((i for i in range(len(lengths)) if i not in left_out), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    rooms: list[int] = []
    for i in order:
        for number, room in enumerate(rooms):
            if lengths[i] <= room:
                insort(bins[number], i)
                rooms[number] = room - lengths[i]
                break
        else:
            bins.append([i])
            rooms.append(max_tokens - lengths[i])
    return Packing(bins=tuple(sorted(tuple(b) for b in bins)), skipped=skipped)


def packed_to(
    sequences: Sequence[Packed],
    max_tokens: int,
    *,
    overlong: Overlong = "error",
    names: Sequence[str] | None = None,
) -> tuple[list[Packed], Packing]:
    """Processed samples as packs of at most `max_tokens`, and which went where. See `plan_packs`."""
    packing = plan_packs([len(s.tokens) for s in sequences], max_tokens, overlong=overlong, names=names)
    return [join([sequences[i] for i in b]) for b in packing.bins], packing
