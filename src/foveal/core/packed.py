"""`Packed`: what processing hands to a model. Sequences lie end to end; nothing is padded."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from foveal.core.box import ImageView
from foveal.core.errors import InputError
from foveal.core.shapes import Float32, Int64

LEFT_OUT = "media_left_out"
"""Name in `Packed.extra` of the number of media that each conversation has before its first one in the pack."""


@dataclass(frozen=True, kw_only=True)
class Medium:
    """One image or video of a packed batch.

    Attributes:
        kind: "image" or "video".
        sequence: index of the sequence it belongs to.
        view: sizes of the original and of the resized picture, (width, height) in pixels.
        grid: patches in time, height and width.
        tokens: visual tokens that it takes in the text.
        times_s: for a video, the time of every sampled frame in seconds; empty for an image.
        fps: for a video, frames per second after sampling, on average; 0 for an image.
        source: how the user named it, for messages and results only (never shown to the model).
    """

    kind: str
    sequence: int
    view: ImageView
    grid: tuple[int, int, int]
    tokens: int
    times_s: tuple[float, ...] = ()
    fps: float = 0.0
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """`length` visual tokens of medium number `medium` that begin at token `start` of the pack."""

    start: int
    length: int
    medium: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """Tokens `start` to `stop` of the pack: who said them, and whether training learns to say them."""

    start: int
    stop: int
    role: str
    learned: bool


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One or more sequences with their media, end to end.

    Shapes: T text tokens with visual ones counted, P patches, N media, B sequences, A position axes
    (3 for M-RoPE: time, height, width; 1 for plain positions), C values in a patch.

    Attributes:
        tokens: ids [T].
        positions: rotary position of every token on every axis [A, T].
        starts: boundaries of the sequences [B + 1]; the first is 0, the last is T.
        deltas: what to add to a later token's index in its sequence to get its position [B].
        patches: pixel values of all media in published patch order [P, C].
        grids: patches in time, height and width of each medium [N, 3].
        media: one record a medium, in the order of `grids`.
        runs: where each medium's visual tokens lie.
        spans: who said which tokens.
    """

    tokens: Int64[np.ndarray, "T"]
    positions: Int64[np.ndarray, "A T"]
    starts: Int64[np.ndarray, "B1"]
    deltas: Int64[np.ndarray, "B"]
    patches: Float32[np.ndarray, "P C"]
    grids: Int64[np.ndarray, "N 3"]
    media: tuple[Medium, ...] = ()
    runs: tuple[Run, ...] = ()
    spans: tuple[Span, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    """Arrays that only one family needs, by name: as many rows for every medium; `LEFT_OUT` has one a sequence."""

    @property
    def lengths(self) -> Int64[np.ndarray, "B"]:
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1


def join(packs: Sequence[Packed]) -> Packed:
    """Several packs as one, sequences in order. The answer of a model to each is unchanged by this."""
    if not packs:
        raise InputError("no sequence to pack; pass at least one conversation.")
    if len(packs) == 1:
        return packs[0]
    tokens = np.cumsum([0] + [len(p.tokens) for p in packs])
    media = np.cumsum([0] + [len(p.media) for p in packs])
    sequences = np.cumsum([0] + [len(p) for p in packs])
    if any(p.extra for p in packs):
        names = set().union(*(p.extra for p in packs))
        extra = {n: np.concatenate([p.extra[n] for p in packs if n in p.extra]) for n in names}
    else:
        extra = {}
    return Packed(
        tokens=np.concatenate([p.tokens for p in packs]),
        positions=np.concatenate([p.positions for p in packs], axis=1),
        starts=np.concatenate([packs[0].starts[:1], *(p.starts[1:] + t for p, t in zip(packs, tokens, strict=False))]),
        deltas=np.concatenate([p.deltas for p in packs]),
        patches=np.concatenate([p.patches for p in packs]),
        grids=np.concatenate([p.grids for p in packs]),
        media=tuple(
            replace(m, sequence=m.sequence + int(s)) for p, s in zip(packs, sequences, strict=False) for m in p.media
        ),
        runs=tuple(
            Run(start=r.start + int(t), length=r.length, medium=r.medium + int(m))
            for p, t, m in zip(packs, tokens, media, strict=False)
            for r in p.runs
        ),
        spans=tuple(
            replace(s, start=s.start + int(t), stop=s.stop + int(t))
            for p, t in zip(packs, tokens, strict=False)
            for s in p.spans
        ),
        extra=extra,
    )


def split(packed: Packed) -> list[Packed]:
    """The sequences of a pack as packs of their own: what `join` joined."""
    if len(packed) == 1:
        return [packed]
    patches = np.cumsum([0, *packed.grids.prod(axis=1)])
    owners = np.array([m.sequence for m in packed.media], dtype=np.int64)
    parts = []
    for sequence, (start, stop) in enumerate(itertools.pairwise(packed.starts.tolist())):
        first, last = np.searchsorted(owners, (sequence, sequence + 1)).tolist()
        own = {
            name: rows[sequence : sequence + 1] if name == LEFT_OUT else _share(rows, first, last, len(owners))
            for name, rows in packed.extra.items()
        }
        parts.append(
            Packed(
                tokens=packed.tokens[start:stop],
                positions=packed.positions[:, start:stop],
                starts=np.array([0, stop - start], dtype=np.int64),
                deltas=packed.deltas[sequence : sequence + 1],
                patches=packed.patches[patches[first] : patches[last]],
                grids=packed.grids[first:last],
                media=tuple(replace(m, sequence=0) for m in packed.media[first:last]),
                runs=tuple(
                    replace(r, start=r.start - start, medium=r.medium - first)
                    for r in packed.runs
                    if start <= r.start < stop
                ),
                spans=tuple(
                    replace(s, start=s.start - start, stop=s.stop - start)
                    for s in packed.spans
                    if start <= s.start < stop
                ),
                extra={name: rows for name, rows in own.items() if len(rows)},
            )
        )
    return parts


def extra_of(packed: Packed, medium: int) -> dict[str, Any]:
    """The rows of `packed.extra` that belong to one medium."""
    count = len(packed.media)
    return {name: _share(rows, medium, medium + 1, count) for name, rows in packed.extra.items() if name != LEFT_OUT}


def _share(rows: Any, first: int, last: int, count: int) -> Any:
    """The rows of media `first` to `last` of `count`."""
    each = len(rows) // count if count else 0
    return rows[first * each : last * each]
