"""Norms, MLPs and kept results."""

import pytest
import torch

from foveal.core.errors import InputError
from foveal.nn.keep import Keep
from foveal.nn.mlp import MLP, GatedMLP, quick_gelu
from foveal.nn.norm import LayerNorm, RMSNorm


def test_rms_norm_by_definition():
    norm = RMSNorm(8, 1e-6)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 8)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_layer_norm_by_definition():
    norm = LayerNorm(8, 1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 8)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected)


def test_mlps_by_definition():
    x = torch.randn(5, 8)
    plain, gated = MLP(8, 12, quick_gelu), GatedMLP(8, 12)
    up = plain.up(x)
    torch.testing.assert_close(plain(x), plain.down(up / (1 + torch.exp(-1.702 * up))))
    gate = gated.gate(x)
    torch.testing.assert_close(gated(x), gated.down(gate / (1 + torch.exp(-gate)) * gated.up(x)))


def test_keep_returns_what_was_asked_for_and_names_what_is_not_there():
    keep = Keep(("layers.0",))
    keep.offer("layers.0", torch.ones(1))
    keep.offer("layers.1", torch.ones(1))
    assert list(keep.finish()) == ["layers.0"]
    wrong = Keep(("layer.1",))
    wrong.offer("layers.1", torch.ones(1))
    with pytest.raises(InputError, match=r"layer\.1.*did you mean 'layers\.1'"):
        wrong.finish()
