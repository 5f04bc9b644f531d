"""Ragged attention equals attention of every sequence alone."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.nn import attention
from foveal.nn.attention import attend_cached, attend_packed


def plain(q, k, v, causal):
    """Attention by its definition (Vaswani et al. 2017, eq. 1), one sequence, keys repeated per query head."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = torch.einsum("thk,shk->hts", q, k) / q.shape[-1] ** 0.5
    if causal:
        keep = torch.ones(len(q), len(k)).tril(len(k) - len(q)).bool()
        scores = scores.masked_fill(~keep, -torch.inf)
    return torch.einsum("hts,shk->thk", scores.softmax(-1), v)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.sampled_from([(4, 2), (4, 4), (6, 1)]),
    st.booleans(),
)
def test_packed_equals_each_alone(lengths, heads, causal):
    torch.manual_seed(sum(lengths))
    total = sum(lengths)
    q = torch.randn(total, heads[0], 8)
    k, v = torch.randn(2, total, heads[1], 8)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    out = attend_packed(q, k, v, starts, causal=causal)
    assert out.shape == q.shape
    for a, b in itertools.pairwise(starts):
        if a < b:
            torch.testing.assert_close(out[a:b], plain(q[a:b], k[a:b], v[a:b], causal), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rows", [2, 3, 512])
@given(st.integers(1, 9), st.integers(0, 9), st.sampled_from([(4, 2), (3, 3), (6, 1)]))
def test_cached_equals_the_last_rows(rows, new, old, heads):
    torch.manual_seed(new * 100 + old)
    seen = old + new
    q = torch.randn(new, heads[0], 8)
    k, v = torch.randn(2, seen, heads[1], 8)
    kept, attention.MASK_ROWS = attention.MASK_ROWS, rows
    try:
        out = attend_cached(q, k.transpose(0, 1), v.transpose(0, 1))
    finally:
        attention.MASK_ROWS = kept
    torch.testing.assert_close(out, plain(q, k, v, True), rtol=0, atol=2e-6)


@pytest.mark.parametrize("training", [False, True])
def test_values_of_another_size_and_a_scale(training):
    """As multi-head latent attention needs them: one key head for all, values narrower, a scale of its own."""
    torch.manual_seed(0)
    q, k, v = torch.randn(7, 4, 12), torch.randn(7, 1, 12), torch.randn(7, 1, 5)
    q.requires_grad_(training)
    expected = plain(q * 0.3 * 12**0.5, k, v, True)
    packed = attend_packed(q, k, v, [0, 7], causal=True, scale=0.3)
    torch.testing.assert_close(packed, expected, rtol=0, atol=2e-6)
    assert attend_packed(q[:0], k[:0], v[:0], [0], causal=True, scale=0.3).shape == (0, 4, 5)
    for new in (1, 3, 7):
        out = attend_cached(q[-new:], k.transpose(0, 1), v.transpose(0, 1), scale=0.3)
        torch.testing.assert_close(out, expected[-new:], rtol=0, atol=2e-6)


def test_no_sequence_gives_no_rows():
    q = torch.randn(0, 2, 4)
    assert attend_packed(q, q, q, [0], causal=True).shape == (0, 2, 4)


def in_blocks_of(rows, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_ROWS", rows)
    monkeypatch.setattr(attention, "has_tiles", lambda: False)


def test_blocks_of_a_picture_equal_fused_attention(monkeypatch):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 50, 4, 20).bfloat16().unbind(0)
    starts = [0, 10, 30, 50]
    with torch.no_grad():
        fused = attend_packed(q, k, v, starts, causal=False)
        in_blocks_of(7, monkeypatch)
        calls = []
        blocked = attention._blocked
        monkeypatch.setattr(attention, "_blocked", lambda *a, **kw: calls.append(1) or blocked(*a, **kw))
        out = attend_packed(q, k, v, starts, causal=False)
    assert calls == [1, 1]  # one of 10 patches, two neighbours of 20
    # Scores are rounded to bfloat16 before the softmax; worst seen: 0.012.
    torch.testing.assert_close(out, fused, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"dtype": torch.float32}, False),
        ({"length": 6}, False),
        ({"groups": 2}, False),
        ({"tiles": True}, False),
        ({"grad": True}, False),
    ],
)
def test_where_blocks_pay(monkeypatch, change, wanted):
    said = {"dtype": torch.bfloat16, "length": 7, "groups": 4, "tiles": False, "grad": False} | change
    in_blocks_of(7, monkeypatch)
    monkeypatch.setattr(attention, "has_tiles", lambda: said["tiles"])
    q, k = (torch.zeros(7, heads, 8, dtype=said["dtype"]) for heads in (4, said["groups"]))
    with torch.set_grad_enabled(said["grad"]):
        assert attention.in_blocks(q, k, said["length"]) is wanted
