"""Segments and opened media as one packed sequence: ids, runs, spans, positions."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from foveal.core.errors import ContextError
from foveal.core.packed import Medium, Packed, Run, Span
from foveal.processing.intake import Opened
from foveal.processing.positions import Block, Positions
from foveal.processing.resize import PatchGrid
from foveal.processing.segments import MediumSegment, Segment
from foveal.processing.tokens import Tokenizer


def pack(
    segments: Sequence[Segment],
    opened: Sequence[Opened],
    tokenizer: Tokenizer,
    grid: PatchGrid,
    positions: Positions,
    context_tokens: int | None,
) -> Packed:
    """One sequence. Raises `ContextError` if it has more than `context_tokens`."""
    media = tuple(medium for medium, _ in opened)
    encoded = tokenizer.encode_segments(segments, [m.tokens for m in media])
    length = len(encoded.ids)
    if context_tokens is not None and length > context_tokens:
        raise _too_long(length, context_tokens, media, grid)
    runs = tuple(_runs(segments, encoded.owners))
    blocks = [_block(run, media[run.medium], grid.merge) for run in runs]
    placed, delta = positions.place(length, blocks)
    empty = np.zeros((0, 3 * grid.temporal * grid.patch**2), dtype=np.float32)
    return Packed(
        tokens=np.array(encoded.ids, dtype=np.int64),
        positions=placed,
        starts=np.array([0, length], dtype=np.int64),
        deltas=np.array([delta], dtype=np.int64),
        patches=np.concatenate([rows for _, rows in opened]) if opened else empty,
        grids=np.array([m.grid for m in media], dtype=np.int64).reshape(-1, 3),
        media=media,
        runs=runs,
        spans=tuple(_spans(segments, encoded.owners)),
    )


def _block(run: Run, medium: Medium, merge: int) -> Block:
    t, h, w = medium.grid
    return Block(start=run.start, grid=(t, h // merge, w // merge), times_s=medium.times_s)


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


def _too_long(length: int, context_tokens: int, media: Sequence[Medium], grid: PatchGrid) -> ContextError:
    visual = sum(m.tokens for m in media)
    room = context_tokens - (length - visual)
    advice = "shorten the text"
    if media and room >= len(media):
        limit = grid.max_px_for(room // len(media))
        advice = f"lower max_pixels (to about {limit} for each medium), send fewer media, or shorten the text"
    elif media:
        advice = "send fewer media and shorten the text"
    return ContextError(
        f"the prompt has {length} tokens, {visual} of them for {len(media)} images and videos; the model's context is "
        f"{context_tokens}. To make it fit, {advice}."
    )
