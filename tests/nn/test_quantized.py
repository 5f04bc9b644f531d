"""Rounding of weights, and layers that compute with them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.core.errors import ConfigError, WeightsError
from foveal.nn import quantized_linear
from foveal.nn.native.build import QUANTIZED, library
from foveal.nn.native.memory import settle
from foveal.nn.quantized import Codes, common_group, product, rounded
from foveal.nn.quantized_linear import QuantizedLinear


def weight(rows: int = 96, columns: int = 256, kind=torch.float32) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 0.02).to(kind)


def error(codes: Codes, wanted: torch.Tensor) -> float:
    return float((codes.dense() - wanted.float()).norm() / wanted.float().norm())


def test_eight_bits_are_within_half_a_step():
    w = weight()
    codes = rounded(w, bits=8, group=256)
    assert codes.scales.shape == (96, 1)
    assert ((codes.dense() - w).abs() <= 0.5001 * codes.scales).all()
    assert error(codes, w) < 0.008  # 0.0068: a step of amax / 127, amax about 3 deviations


def test_four_bits_take_the_best_scale():
    w = weight()
    codes = rounded(w, bits=4, group=32)
    plain = w.view(96, -1, 32).abs().amax(-1, keepdim=True) / 7
    simple = ((w.view(96, -1, 32) / plain).round() * plain).view_as(w)
    assert error(codes, w) < 0.95 * float((simple - w).norm() / w.norm())
    assert 0.08 < error(codes, w) < 0.095  # 0.088
    assert codes.codes.max() <= 15


def test_what_a_grid_holds_is_kept():
    w = (torch.randint(-7, 8, (8, 64)) * 0.25).float()
    w[:, ::32] = 1.75
    assert torch.equal(rounded(w, bits=4, group=32).dense(), w)
    assert torch.equal(rounded(torch.zeros(4, 64), bits=4, group=32).dense(), torch.zeros(4, 64))


def test_codes_are_of_the_scale_that_is_stored():
    w = weight(kind=torch.bfloat16)
    codes = rounded(w, bits=8, group=256)
    assert codes.scales.dtype == torch.bfloat16
    # With rounded scales 127 of them may fall short of the largest value by up to 2^-9 of it, 0.25 of a step.
    assert ((codes.dense() - w.float()).abs() <= 0.76 * codes.scales.float()).all()


def test_importance_moves_the_error_elsewhere():
    w = weight()
    heavy = torch.ones(256)
    heavy[::8] = 100.0
    plain, weighed = rounded(w, bits=4, group=128), rounded(w, bits=4, group=128, importance=heavy)
    assert (weighed.dense() - w)[:, ::8].norm() < (plain.dense() - w)[:, ::8].norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rounded(torch.full((4, 64), float("nan")), bits=4, group=32), "not finite"),
        (lambda: rounded(torch.ones(4, 60), bits=4, group=32), "no groups of 32"),
        (lambda: common_group([40], 128), "no groups of 128"),
        (lambda: common_group([64], 0), "groups of 0"),
        (lambda: Codes(bits=3, codes=torch.zeros(2, 4), scales=torch.ones(2, 1)), "weights of 3 bits"),
        (lambda: Codes(bits=4, codes=torch.zeros(2, 4), scales=torch.ones(3, 1)), "do not fit"),
        (
            lambda: Codes(bits=4, codes=torch.zeros(2, 4), scales=torch.ones(2, 1), zeros=torch.ones(2, 2)),
            "differ in shape",
        ),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises((ConfigError, WeightsError), match=message):
        make()


def test_one_group_for_all_layers():
    assert common_group([1536, 8960], 128) == 128
    assert common_group([256, 704], 128) == 64
    assert common_group([256, 704], 352) == 64


WAYS = ["dense", "stock", *(["native"] if library(QUANTIZED) is not None else [])]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    if request.param != "native":
        monkeypatch.setattr(quantized_linear, "computes", lambda *_: False)
    if request.param == "dense":
        monkeypatch.setattr(quantized_linear, "stock", lambda *_: None)
    return request.param


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_way_computes_the_layer(way, bits, kind):
    w, bias = weight(128, 256), nn.Parameter(torch.linspace(-1, 1, 128).to(kind), requires_grad=False)
    layer = QuantizedLinear(rounded(w, bits=bits, group=64 if bits == 4 else 256), bias)
    x = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(3)).to(kind)
    wanted = F.linear(x.float(), layer.weight.float(), bias.float())
    got = layer(x)
    assert layer.how == way
    assert got.shape == wanted.shape and got.dtype == kind
    # Inputs rounded to 8 bits: 0.008 of the result's size; bfloat16 scales of the 4-bit operator: 0.004.
    assert (got.float() - wanted).norm() < 0.012 * (wanted - bias.float()).norm()


def test_every_way_takes_zeros_and_an_order(way):
    g = torch.Generator().manual_seed(5)
    codes = Codes(
        bits=4,
        codes=torch.randint(0, 16, (128, 256), dtype=torch.uint8, generator=g),
        scales=torch.rand(128, 8, generator=g) * 0.01 + 0.01,
        zeros=torch.randint(5, 11, (128, 8), dtype=torch.uint8, generator=g),
        order=torch.randperm(256, generator=g),
    )
    layer, x = QuantizedLinear(codes), torch.randn(9, 256, generator=g)
    wanted = x[:, codes.order] @ Codes(**{**vars(codes), "order": None}).dense().T
    assert (layer(x) - wanted).norm() < 0.012 * wanted.norm()
    assert torch.allclose(x @ layer.weight.T, wanted, atol=1e-4)


def test_gradients_reach_the_inputs():
    layer = QuantizedLinear(rounded(weight(), bits=4, group=32))
    x = torch.randn(4, 256, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(4, -1), atol=1e-6)


def test_codes_come_back():
    codes = rounded(weight(100, 256), bits=4, group=64)
    layer = QuantizedLinear(codes)
    layer(torch.randn(1, 256))
    for name in ("codes", "scales"):
        assert torch.equal(getattr(layer.codes, name), getattr(codes, name))
    assert not layer.state_dict()


def test_layers_are_joined():
    parts = [QuantizedLinear(rounded(weight(rows), bits=4, group=32)) for rows in (64, 32, 40)]
    parts[1].bias = nn.Parameter(torch.ones(32))
    whole, x = QuantizedLinear.join(parts), torch.randn(5, 256)
    assert torch.equal(whole(x), torch.cat([part(x) for part in parts], dim=-1))
    assert QuantizedLinear.join([parts[0], QuantizedLinear(rounded(weight(), bits=8, group=256))]) is None


def test_copies_and_moves_compute_the_same():
    layer = QuantizedLinear(rounded(weight(), bits=4, group=32))
    x = torch.randn(5, 256)
    wanted = layer(x)
    twin = copy.deepcopy(layer)
    del layer.codes_
    assert torch.equal(twin(x), wanted)
    assert torch.equal(twin.to("cpu")(x), wanted)


def test_the_reference_follows_the_order():
    codes = rounded(weight(64, 128), bits=8, group=128)
    order = torch.randperm(128)
    turned = Codes(**{**vars(codes), "order": order})
    x = torch.randn(2, 128)
    assert torch.allclose(product(x, turned, 128), product(x[:, order], codes, 128))


def test_settled_memory_is_aligned():
    first, second = settle(torch.arange(1000)), settle(torch.arange(7.0))
    assert first.data_ptr() % 64 == 0 and second.data_ptr() % 64 == 0
    assert torch.equal(first, torch.arange(1000)) and torch.equal(second, torch.arange(7.0))
