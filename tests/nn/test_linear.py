"""`linear` is torch's where the kernel may not compute, and equal to it within roundings where it does."""

import pytest
import torch
import torch.nn.functional as F

from foveal.nn import linear as module
from foveal.nn.linear import Linear, linear
from foveal.nn.native import dense


@pytest.fixture
def calls(monkeypatch):
    """Counts the products that the kernel computes."""
    found = []
    real = dense.product
    monkeypatch.setattr(module.dense, "product", lambda *a, **k: found.append(1) or real(*a, **k))
    return found


def layer(kind=torch.bfloat16, bias=True):
    torch.manual_seed(0)
    return Linear(64, 48, bias=bias).to(kind)


@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64), (0, 64), (2, 0, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_are_torchs(shape, bias):
    own = layer(bias=bias)
    x = torch.randn(*shape).bfloat16()
    with torch.inference_mode():
        out, expected = own(x), F.linear(x, own.weight, own.bias)
    assert out.shape == expected.shape
    # One rounding to bfloat16 of values up to 3, each way.
    torch.testing.assert_close(out, expected, atol=2**-6, rtol=2**-7)


def test_views_are_read_as_what_they_show():
    own = layer()
    x = torch.randn(64, 10).bfloat16()
    with torch.inference_mode():
        assert torch.equal(own(x.T), own(x.T.contiguous()))
        wide = torch.randn(10, 128).bfloat16()
        assert torch.equal(own(wide[:, 32:96]), own(wide[:, 32:96].contiguous()))
        third = linear(x.T, own.weight[16:32], None)
        assert torch.equal(third, linear(x.T.contiguous(), own.weight[16:32].clone()))


def test_gradients_and_other_types_are_torchs(calls):
    own = layer()
    x = torch.randn(3, 64).bfloat16()
    own(x).sum().backward()
    assert own.weight.grad is not None
    with torch.no_grad():
        layer(torch.float32)(x.float())
        layer().to("meta")(x.to("meta"))
        linear(x, own.weight.T.contiguous().T)
    assert not calls


@pytest.mark.skipif(not dense.computes(3), reason="this machine cannot build or run the kernel")
def test_inference_in_bfloat16_is_the_kernels(calls):
    own = layer()
    with torch.no_grad():
        own(torch.randn(3, 64).bfloat16())
    own.requires_grad_(False)(torch.randn(3, 64).bfloat16())
    assert len(calls) == 2


def test_without_the_kernel_it_is_torchs(monkeypatch, calls):
    monkeypatch.setattr(dense, "way", lambda: None)
    own, x = layer(), torch.randn(3, 64).bfloat16()
    with torch.inference_mode():
        assert torch.equal(own(x), F.linear(x, own.weight, own.bias))
    assert not calls


def test_tracers_get_torchs_operator():
    own = layer().requires_grad_(False)
    graph = torch.fx.experimental.proxy_tensor.make_fx(own, tracing_mode="fake", _allow_non_fake_inputs=True)(
        torch.randn(3, 64).bfloat16()
    )
    assert "aten" in graph.code
