"""Segments and opened media as one packed sequence: ids, runs, spans, positions."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from foveal.core.errors import ContextError
from foveal.core.packed import Medium, Packed, Run, Span
from foveal.processing.intake import Opened, Vision
from foveal.processing.positions import Block, Positions
from foveal.processing.segments import MediumSegment, Segment
from foveal.processing.tokens import Tokenizer


def pack(
    segments: Sequence[Segment],
    opened: Sequence[Opened],
    tokenizer: Tokenizer,
    vision: Vision,
    positions: Positions,
    context_tokens: int | None,
) -> Packed:
    """One sequence. Raises `ContextError` if it has more than `context_tokens`."""
    media = tuple(o.medium for o in opened)
    encoded = tokenizer.encode_segments(segments, [m.tokens for m in media])
    length = len(encoded.ids)
    if context_tokens is not None and length > context_tokens:
        raise _too_long(length, context_tokens, media, vision)
    runs = tuple(_runs(segments, encoded.owners))
    blocks = _blocks(runs, media, vision)
    placed, delta = positions.place(length, blocks)
    empty = np.zeros((0, vision.patch_values), dtype=np.float32)
    names = dict.fromkeys(name for o in opened for name in o.extra)
    return Packed(
        tokens=np.array(encoded.ids, dtype=np.int64),
        positions=placed,
        starts=np.array([0, length], dtype=np.int64),
        deltas=np.array([delta], dtype=np.int64),
        patches=np.concatenate([o.patches for o in opened]) if opened else empty,
        grids=np.array([m.grid for m in media], dtype=np.int64).reshape(-1, 3),
        media=media,
        runs=runs,
        spans=tuple(_spans(segments, encoded.owners)),
        extra={name: np.concatenate([o.extra[name] for o in opened if name in o.extra]) for name in names},
    )


def _blocks(runs: Sequence[Run], media: Sequence[Medium], vision: Vision) -> list[Block]:
    """The visual tokens of each run. A medium in several runs is divided in time, evenly."""
    shares = Counter(run.medium for run in runs)
    blocks = []
    for run in runs:
        medium = media[run.medium]
        t, h, w = vision.cells(medium)
        blocks.append(
            Block(start=run.start, grid=(t // shares[run.medium], h, w), times_s=medium.times_s, fps=medium.fps)
        )
    return blocks


def _runs(segments: Sequence[Segment], owners: Sequence[int]) -> Iterator[Run]:
    start = 0
    for owner, group in groupby(owners):
        length = sum(1 for _ in group)
        segment = segments[owner]
        if isinstance(segment, MediumSegment):
            yield Run(start=start, length=length, medium=segment.medium)
        start += length


def _spans(segments: Sequence[Segment], owners: Sequence[int]) -> Iterator[Span]:
    def speaker(owner: int) -> tuple[int, str, bool]:
        return segments[owner].turn, segments[owner].role, segments[owner].learned

    start = 0
    for (_, role, learned), group in groupby(owners, key=speaker):
        stop = start + sum(1 for _ in group)
        yield Span(start=start, stop=stop, role=role, learned=learned)
        start = stop


def _too_long(length: int, context_tokens: int, media: Sequence[Medium], vision: Vision) -> ContextError:
    visual = sum(m.tokens for m in media)
    room = context_tokens - (length - visual)
    advice = "shorten the text"
    limit = vision.pixels_for(room // len(media)) if media and room >= len(media) else None
    if limit is not None:
        advice = f"lower max_pixels (to about {limit} for each medium), send fewer media, or shorten the text"
    elif media:
        advice = "send fewer media and shorten the text"
    return ContextError(
        f"the prompt has {length} tokens, {visual} of them for {len(media)} images and videos; the model's context is "
        f"{context_tokens}. To make it fit, {advice}."
    )
