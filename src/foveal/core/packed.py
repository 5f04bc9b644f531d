"""`Packed`: what processing hands to a model. Sequences lie end to end; nothing is padded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveal.core.box import ImageView
from foveal.core.errors import InputError
from foveal.core.shapes import Float32, Int64


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
    """Arrays that only one family needs, by name."""

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
    from dataclasses import replace

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
