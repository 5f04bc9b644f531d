"""The compiled kernel computes what its reference in torch says, in every layout, size and type."""

import copy
import pickle

import pytest
import torch

from foveal.nn.native.build import QUANTIZED, library
from foveal.nn.native.products import TYPES, Product, by_block, input_step, lines, unblocked, unlined
from foveal.nn.quantized import Codes, product

native = pytest.mark.skipif(library(QUANTIZED) is None, reason="this machine cannot build or run the kernel")
SHAPES = ((64, 128, 32), (200, 256, 128), (96, 1536, 1536), (130, 704, 704), (64, 320, 64))


def codes_of(rows: int, columns: int, group: int, *, bits: int, kind=torch.float32, zeros: bool = False) -> Codes:
    g = torch.Generator().manual_seed(rows + columns + bits)
    return Codes(
        bits=bits,
        codes=torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=g),
        scales=(torch.rand(rows, columns // group, generator=g) * 0.01 + 0.001).to(kind),
        zeros=torch.randint(0, 1 << bits, (rows, columns // group), dtype=torch.uint8, generator=g) if zeros else None,
    )


def kernel_of(codes: Codes, bias: torch.Tensor | None = None) -> Product:
    rows, columns = codes.codes.shape
    zeros = None if codes.zeros is None else by_block(codes.zeros)
    packed, scales = lines(codes.codes, codes.bits), by_block(codes.scales)
    return Product(packed, scales, zeros, bias, rows=rows, columns=columns, bits=codes.bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_layout_loses_nothing(bits):
    codes = codes_of(200, 256, 128, bits=bits).codes
    assert torch.equal(unlined(lines(codes, bits), bits, 200), codes)
    values = torch.rand(200, 3)
    assert torch.equal(unblocked(by_block(values), 200), values)


def test_a_line_has_sixteen_rows_of_four_columns():
    eight = torch.arange(64 * 8).view(64, 8).remainder(251).to(torch.uint8)
    assert torch.equal(lines(eight, 8)[0, 1, 2], eight[32:48, 4:8])
    four = torch.arange(64 * 8).view(64, 8).remainder(13).to(torch.uint8)
    assert torch.equal(lines(four, 4)[0, 0, 1] & 15, four[16:32, :4])
    assert torch.equal(lines(four, 4)[0, 0, 1] >> 4, four[16:32, 4:])


@native
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_the_kernel_is_the_reference(bits, rows, columns, group, zeros, kind):
    codes = codes_of(rows, columns, group, bits=bits, kind=kind, zeros=zeros)
    x, bias = torch.randn(5, columns, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, rows)
    wanted = product(x.double().float(), codes, input_step(group)) + bias
    got = kernel_of(codes, bias)(x)
    # Sums of float32 in another order: 6e-7 of the largest at worst.
    assert (got - wanted).abs().max() <= 3e-6 * wanted.abs().max()


@native
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
@pytest.mark.parametrize("zeros", [False, True])
def test_a_row_is_the_same_bits_whatever_comes_with_it(bits, rows, columns, group, zeros):
    codes = codes_of(rows, columns, group, bits=bits, zeros=zeros)
    kernel, x = kernel_of(codes), torch.randn(71, columns, generator=torch.Generator().manual_seed(2))
    whole = kernel(x)
    assert torch.equal(whole, kernel(x, amx_rows=10**6))
    for count in (1, 2, 3, 4, 7, 15, 16, 17, 33):
        assert torch.equal(kernel(x[:count].contiguous()), whole[:count])
    assert kernel(x[:0].contiguous()).shape == (0, rows)


@native
def test_bfloat16_is_rounded_as_torch_does():
    codes = codes_of(200, 256, 128, bits=4)
    x = torch.randn(9, 256).bfloat16()
    kernel = kernel_of(codes)
    assert torch.equal(kernel(x), kernel(x.float()).bfloat16())


@native
def test_what_is_not_finite_stays_so_in_its_row():
    codes = codes_of(64, 256, 128, bits=4)
    x = torch.randn(4, 256)
    clean = kernel_of(codes)(x)
    x[1, 3], x[2, 200] = float("nan"), float("inf")
    for out in (kernel_of(codes)(x), kernel_of(codes)(x, amx_rows=10**6)):
        assert not out[1].isfinite().any() and not out[2].isfinite().any()
        assert torch.equal(out[[0, 3]], clean[[0, 3]])
    assert torch.equal(kernel_of(codes)(torch.zeros(3, 256)), torch.zeros(3, 64))


@native
def test_a_copy_makes_its_own():
    kernel = kernel_of(codes_of(64, 256, 128, bits=4))
    assert copy.deepcopy(kernel) is None
    assert pickle.loads(pickle.dumps(kernel)) is None  # noqa: S301


def test_groups_that_the_kernel_cannot_compute():
    assert [input_step(g) for g in (32, 64, 96, 128, 1536, 704, 48, 16)] == [32, 64, 32, 128, 128, 64, None, None]
