"""The compiled kernel for bfloat16 layers: right in every size, and each row the same whatever comes with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.errors import FovealError
from foveal.nn.native import dense
from foveal.nn.native.build import DENSE, library

WAYS = [] if library(DENSE) is None else [dense.DOTS, *([dense.TILES] if dense.way() == dense.TILES else [])]
native = pytest.mark.skipif(not WAYS, reason="this machine cannot build or run the kernel")
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 353)


def tensors(count, rows, columns, *, bias):
    g = torch.Generator().manual_seed(count * 7919 + rows * 31 + columns)
    x, weight = torch.randn(count, columns, generator=g), torch.randn(rows, columns, generator=g)
    return x.bfloat16(), weight.bfloat16(), torch.randn(rows, generator=g).bfloat16() if bias else None


def assert_right(out, x, weight, bias):
    """Within a rounding to bfloat16 of the product in float64."""
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    # Sums are float32; the worst measured over 600 cases is 0.51 of a bfloat16's step, where the sum is not near 0.
    room = exact.abs() * 2**-8 + 1e-5 * x.shape[1] ** 0.5 * 8
    assert ((out.double() - exact).abs() <= room).all()


@native
@pytest.mark.parametrize("way", WAYS)
@given(
    st.sampled_from(EDGES) | st.integers(1, 400),
    st.sampled_from(EDGES) | st.integers(1, 200),
    st.sampled_from((1, 2, 31, 32, 33, 64, 100, 1176, 1568)) | st.integers(1, 300),
    st.booleans(),
)
def test_products_are_right_in_every_size(way, count, rows, columns, bias):
    x, weight, b = tensors(count, rows, columns, bias=bias)
    assert_right(dense.product(x, weight, b, by=way), x, weight, b)


@native
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rows", "columns"), [(96, 1536), (80, 3420), (33, 4100)])
def test_a_row_is_the_same_bits_whatever_comes_with_it(way, rows, columns):
    x, weight, bias = tensors(720, rows, columns, bias=True)
    alone = torch.cat([dense.product(x[i : i + 1], weight, bias, by=way) for i in range(0, 720, 48)])
    for count in (16, 17, 64, 65, 353, 720):
        together = dense.product(x[:count].contiguous(), weight, bias, by=way)
        assert torch.equal(together[::48], alone[: len(together[::48])])


@native
@pytest.mark.parametrize("way", WAYS)
def test_threads_change_no_bit(way):
    x, weight, bias = tensors(70, 1000, 640, bias=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += [dense.product(x, weight, bias, by=way), dense.product(x[:3], weight, bias, by=way)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, found[2:], strict=False))


@native
@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_finite_stays_in_its_row(way):
    x, weight, _ = tensors(20, 48, 64, bias=False)
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    out = dense.product(x, weight, by=way)
    assert out[3].isnan().all()
    assert not out[7].isfinite().any()
    assert out[[i for i in range(20) if i not in (3, 7)]].isfinite().all()


@native
def test_no_rows_give_no_rows():
    assert dense.product(torch.empty(0, 64, dtype=torch.bfloat16), torch.ones(8, 64).bfloat16()).shape == (0, 8)


TILES = pytest.mark.skipif(dense.TILES not in WAYS, reason="compact weights need tiles (AMX)")


def bits(tensor):
    return tensor.contiguous().view(torch.int16)


@TILES
@given(
    st.sampled_from(EDGES) | st.integers(1, 200),
    st.sampled_from((1, 2, 31, 32, 33, 64, 100, 1176, 1568)) | st.integers(1, 300),
    st.floats(1e-30, 1e30),
)
def test_a_compact_weight_is_the_weight(rows, columns, scale):
    g = torch.Generator().manual_seed(rows * 31 + columns)
    weight = (torch.randn(rows, columns, generator=g) * scale).bfloat16()
    compact = dense.compacted(weight)
    assert compact is not None and torch.equal(bits(dense.opened(compact)), bits(weight))


@TILES
@given(
    st.sampled_from(EDGES) | st.integers(1, 400),
    st.sampled_from(EDGES) | st.integers(1, 200),
    st.sampled_from((1, 2, 31, 32, 33, 64, 100, 1176, 1568, 3100)) | st.integers(1, 300),
    st.booleans(),
)
def test_compact_weights_change_no_bit(count, rows, columns, bias):
    x, weight, b = tensors(count, rows, columns, bias=bias)
    compact = dense.compacted(weight)
    assert torch.equal(bits(dense.product(x, compact, b)), bits(dense.product(x, weight, b)))


@TILES
def test_outliers_keep_every_bit():
    """Values far from all others, zeros of both signs and what is no number stand in the list."""
    weight = tensors(1, 96, 640, bias=False)[1]
    odd = (0.0, -0.0, 1e-40, -3e38, float("inf"), float("-inf"), float("nan"), 1e-20, 2.0**100)
    for number, value in enumerate(odd):
        weight[number * 7 % 96, number * 71 % 640] = value
    weight[95, 639] = weight[0, 0] = 2.0**90
    compact = dense.compacted(weight)
    assert len(compact.outliers) >= len(odd) - 3
    assert torch.equal(bits(dense.opened(compact)), bits(weight))
    x = tensors(70, 96, 640, bias=False)[0]
    for count in (1, 16, 40, 70):
        found, plain = (dense.product(x[:count].contiguous(), w) for w in (compact, weight))
        assert torch.equal(found.isnan(), plain.isnan())
        assert torch.equal(bits(found)[~plain.isnan()], bits(plain)[~plain.isnan()])


@TILES
def test_compact_weights_are_for_tiles():
    x, weight, _ = tensors(2, 32, 64, bias=False)
    with pytest.raises(FovealError, match="tiles"):
        dense.product(x, dense.compacted(weight), by=dense.DOTS)


@TILES
def test_what_has_too_many_exponents_stays_as_it_is():
    g = torch.Generator().manual_seed(0)
    assert (
        dense.compacted(torch.randint(-(2**15), 2**15, (64, 64), dtype=torch.int16, generator=g).view(torch.bfloat16))
        is None
    )


@TILES
def test_a_compact_weight_takes_three_quarters():
    weight = tensors(1, 1024, 1536, bias=False)[1]
    assert dense.compacted(weight).nbytes < 0.755 * weight.nbytes  # 0.7521


@TILES
def test_threads_change_no_bit_of_compact_products():
    x, weight, bias = tensors(70, 1000, 640, bias=True)
    compact, before = dense.compacted(weight), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += [dense.product(x, compact, bias), dense.product(x[:3], compact, bias)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, found[2:], strict=False))
