"""Joining packs moves every boundary and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.box import ImageView
from foveal.core.errors import InputError
from foveal.core.packed import Medium, Packed, Run, Span, join

VIEW = ImageView(original=(10, 10), processed=(4, 4))


def pack(lengths, media, seed):
    """B sequences of the given lengths; the first holds `media` one-token media at its start."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    return Packed(
        tokens=rng.integers(0, 99, total),
        positions=rng.integers(0, 99, (3, total)),
        starts=np.cumsum([0, *lengths]),
        deltas=rng.integers(-9, 9, len(lengths)),
        patches=rng.random((4 * media, 6), dtype=np.float32),
        grids=np.tile(np.array([[1, 2, 2]]), (media, 1)).reshape(media, 3),
        media=tuple(Medium(kind="image", sequence=0, view=VIEW, grid=(1, 2, 2), tokens=1) for _ in range(media)),
        runs=tuple(Run(start=i, length=1, medium=i) for i in range(media)),
        spans=(Span(start=0, stop=total, role="user", learned=False),),
    )


@given(
    st.lists(st.tuples(st.lists(st.integers(3, 6), min_size=1, max_size=3), st.integers(0, 3)), min_size=1, max_size=4)
)
def test_every_part_is_found_again(shapes):
    packs = [pack(lengths, media, i) for i, (lengths, media) in enumerate(shapes)]
    whole = join(packs)
    assert len(whole) == sum(len(p) for p in packs)
    token = medium = sequence = 0
    runs, spans = iter(whole.runs), iter(whole.spans)
    for part in packs:
        stop = token + len(part.tokens)
        assert np.array_equal(whole.tokens[token:stop], part.tokens)
        assert np.array_equal(whole.positions[:, token:stop], part.positions)
        assert np.array_equal(whole.starts[sequence : sequence + len(part)] - token, part.starts[:-1])
        for run in part.runs:
            assert next(runs) == Run(start=run.start + token, length=1, medium=run.medium + medium)
            assert whole.media[run.medium + medium].sequence == sequence
        assert next(spans) == Span(start=token, stop=stop, role="user", learned=False)
        token, medium, sequence = stop, medium + len(part.media), sequence + len(part)
    assert whole.starts[-1] == token
    assert len(whole.patches) == 4 * medium


def test_nothing_to_join():
    with pytest.raises(InputError, match="no sequence"):
        join([])
