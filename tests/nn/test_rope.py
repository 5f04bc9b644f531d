"""Rotary positions: lengths, relativity, sections."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.nn.rope import frequencies, grid_rotation, text_rotation


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 3000))
def test_products_depend_on_distance_only(i, j, shift):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64)

    def product(a, b):
        turn = [text_rotation(torch.tensor([[p]]), head_dim=16, theta=100.0, section=(8,)) for p in (a, b)]
        return (turn[0](q) * turn[1](k)).sum()

    # Angles are float32: at position 8,000 they are right to about 5e-4.
    torch.testing.assert_close(product(i, j), product(i + shift, j + shift), rtol=0, atol=2e-2)


def test_sections_follow_their_axes():
    positions = torch.tensor([[3], [50], [700]])
    mixed = text_rotation(positions, head_dim=16, theta=1e4, section=(2, 3, 3))
    for axis, chosen in ((0, [0, 1]), (1, [2, 3, 4]), (2, [5, 6, 7])):
        alone = text_rotation(positions[axis : axis + 1], head_dim=16, theta=1e4, section=(8,))
        for i in chosen:
            assert mixed.cos[0, 0, i] == alone.cos[0, 0, i]
            assert mixed.sin[0, 0, i + 8] == alone.sin[0, 0, i + 8]


def test_equal_axes_are_plain_rope():
    positions = torch.arange(20)
    mixed = text_rotation(positions.expand(3, -1), head_dim=16, theta=1e4, section=(2, 3, 3))
    plain = text_rotation(positions[None], head_dim=16, theta=1e4, section=(8,))
    assert torch.equal(mixed.cos, plain.cos)
    assert torch.equal(mixed.sin, plain.sin)


def test_grid_turns_rows_and_columns_apart():
    turn = grid_rotation(torch.tensor([0, 5]), torch.tensor([7, 0]), head_dim=16, theta=1e4)
    own = torch.outer(torch.tensor([7.0, 5.0]), frequencies(8, 1e4, torch.device("cpu")))
    assert torch.equal(turn.cos[0, 0, 4:8], own[0].cos())
    assert torch.equal(turn.cos[1, 0, :4], own[1].cos())
    assert torch.equal(turn.cos[0, 0, :4], torch.ones(4))
    assert torch.equal(turn.cos[..., :8], turn.cos[..., 8:])
