import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.processing.positions import Block, MRope, Plain
from tests.helpers import published

SIDE = st.integers(1, 6)
IMAGE = st.tuples(st.just(1), st.just(1), SIDE, SIDE)
VIDEO = st.tuples(st.just(2), st.integers(1, 9), SIDE, SIDE)  # (kind, time, rows, columns), on the merged grid
LAYOUT = st.lists(st.tuples(st.integers(1, 12), st.none() | IMAGE | VIDEO), min_size=1, max_size=6)


def laid_out(layout):
    """Blocks, kind of every token, and grids in patches."""
    blocks, kinds, grids = [], [], []
    for text, medium in layout:
        kinds += [0] * text
        if medium is not None:
            kind, t, h, w = medium
            blocks.append(Block(start=len(kinds), grid=(t, h, w)))
            kinds += [kind] * (t * h * w)
            grids.append((kind, (t, 2 * h, 2 * w)))
    return blocks, kinds, grids


@given(LAYOUT)
@settings(max_examples=400)
def test_positions_follow_the_published_rule(layout):
    blocks, kinds, grids = laid_out(layout)
    positions, delta = MRope().place(len(kinds), blocks)
    expected, expected_delta = published.rule_positions(kinds, [g for _, g in grids])
    np.testing.assert_array_equal(positions, expected)
    assert delta == expected_delta
    if all(t <= max(h, w) // 2 for _, (t, h, w) in grids):  # beyond that transformers 5.23 moves on too little
        theirs, their_delta = published.library_positions(kinds, grids)
        np.testing.assert_array_equal(positions, theirs)
        assert delta == their_delta


def test_a_long_video_does_not_overlap_what_follows():
    positions, delta = MRope().place(22, [Block(start=1, grid=(10, 1, 2))])
    np.testing.assert_array_equal(positions[:, -1], [11, 11, 11])
    assert delta == 12 - 22
    np.testing.assert_array_equal(positions[0, 1:-1], np.repeat(np.arange(1, 11), 2))
    np.testing.assert_array_equal(positions[2, 1:-1], [1, 2] * 10)


def test_a_decoded_token_goes_on_where_the_prompt_ended():
    for layout in ([(5, (1, 1, 3, 4)), (2, None)], [(1, (2, 9, 1, 1))], [(3, None)]):
        blocks, kinds, _ = laid_out(layout)
        positions, delta = MRope().place(len(kinds), blocks)
        longer, _ = MRope().place(len(kinds) + 1, blocks)
        assert longer[0, -1] == len(kinds) + delta == positions.max() + 1


def test_text_alone_counts_up():
    positions, delta = MRope().place(4, [])
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3]] * 3)
    assert delta == 0
    positions, delta = Plain().place(6, [Block(start=1, grid=(1, 2, 2))])
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3, 4, 5]])
    assert delta == 0


def test_a_family_may_count_time_otherwise():
    class Seconds(MRope):
        def times(self, block):
            return np.array([int(t * 2) for t in block.times_s[::2]], dtype=np.int64)

    block = Block(start=0, grid=(3, 1, 1), times_s=(0.0, 0.5, 1.0, 1.5, 2.0, 2.5))
    positions, delta = Seconds().place(4, [block])
    np.testing.assert_array_equal(positions[0], [0, 2, 4, 5])
    assert delta == 6 - 4


@pytest.mark.parametrize("axes", [1, 3])
def test_an_empty_sequence_has_no_positions(axes):
    positions, delta = (Plain() if axes == 1 else MRope()).place(0, [])
    assert positions.shape == (axes, 0)
    assert delta == 0
