"""Rounding that looks at activations: what it scales changes nothing, and helps where channels differ."""

import torch
from torch import nn

from foveal.families.awq import _Block
from foveal.nn.mlp import GatedMLP
from foveal.nn.norm import RMSNorm
from foveal.nn.quantized import rounded


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm2, self.mlp = RMSNorm(64, 1e-6), GatedMLP(64, 96)
        with torch.no_grad():
            self.norm2.weight.copy_(torch.rand(64) + 0.5)
            self.norm2.weight[::16] *= 12.0  # loud channels
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm2(x))


def recorded(layer: Layer, x: torch.Tensor) -> dict[str, torch.Tensor]:
    normed = layer.norm2(x)
    middle = torch.nn.functional.silu(layer.mlp.gate(normed)) * layer.mlp.up(normed)
    return {"mlp.gate": normed, "mlp.up": normed, "mlp.down": middle}


def with_weights(layer: Layer, weights: dict[str, torch.Tensor]) -> Layer:
    for name, weight in weights.items():
        layer.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
    return layer


def test_scaling_changes_nothing_and_rounding_costs_less():
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    wanted = Layer()(x)
    layer = Layer()
    linear = {name: layer.get_submodule(name) for name in ("mlp.gate", "mlp.up", "mlp.down")}
    block = _Block(layer, linear, recorded(layer, x), 4, 32)
    codes = block.codes()
    assert not torch.equal(layer.norm2.weight, Layer().norm2.weight)
    assert torch.allclose(with_weights(layer, block.weights)(x), wanted, atol=1e-4)
    aware = with_weights(layer, {name: made.dense() for name, made in codes.items()})(x)
    plain = Layer()
    for name in linear:
        part = plain.get_submodule(name)
        part.weight.copy_(rounded(part.weight, bits=4, group=32).dense())
    assert (aware - wanted).norm() < 0.85 * (plain(x) - wanted).norm()
