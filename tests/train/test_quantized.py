"""Quantized weights: their error and size, gradients, and updates learned beside them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from foveal.core.errors import ConfigError
from foveal.nn.linear import Linear
from foveal.nn.lora import adapted, merge, strip
from foveal.train.lora import Lora, apply, open_adapter, save_adapter
from foveal.train.quantized import QuantizedLinear, nf4_levels, quantize, size_bytes
from tests.helpers import peft

# Dettmers et al. 2023, appendix E.
PUBLISHED = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def layer(rows: int, inputs: int, *, seed: int = 0, bias: bool = True) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"one": Linear(inputs, rows, bias=bias)})


def test_levels_are_the_published_ones():
    # Seen: 2e-7, the rounding of the published ones to float32.
    assert nf4_levels() == pytest.approx(PUBLISHED, abs=1e-6)


def test_every_weight_takes_the_nearest_level():
    net = layer(8, 64)
    weight = net["one"].weight.detach().clone()
    quantize(net, ("one",), double=False)
    largest = weight.abs().amax(1, keepdim=True)
    levels = torch.tensor(PUBLISHED)
    nearest = levels[((weight / largest)[..., None] - levels).abs().argmin(-1)] * largest
    assert torch.allclose(net["one"].weight, nearest, atol=1e-6)


@pytest.mark.parametrize(("kind", "double", "error"), [("nf4", False, 0.10), ("nf4", True, 0.10), ("int8", True, 0.01)])
def test_error_of_normal_weights(kind, double, error):
    net = layer(128, 256)
    nn.init.normal_(net["one"].weight)
    weight = net["one"].weight.detach().clone()
    quantize(net, ("one",), kind=kind, double=double)
    # Root mean square, weights have 1. Seen: 0.096, 0.096, 0.0072.
    assert (net["one"].weight - weight).square().mean().sqrt() < error


@pytest.mark.parametrize(
    ("kind", "double", "bits"), [("nf4", False, 4.5), ("nf4", True, 4 + 8 / 64 + 32 / 64 / 256), ("int8", False, 8.125)]
)
def test_size(kind, double, bits):
    net = layer(256, 256, bias=False)
    done = quantize(net, ("one",), kind=kind, double=double)
    assert done.before_bytes == 4 * 256**2
    assert done.after_bytes == size_bytes(net)
    assert done.after_bytes * 8 / 256**2 == pytest.approx(bits, abs=1e-3)


@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 150),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["nf4", "int8"]),
    double=st.booleans(),
    size=st.sampled_from([0.0, 1e-20, 1.0, 1e20]),
)
def test_every_shape_and_size_survives(rows, inputs, seed, kind, double, size):
    net = layer(rows, inputs, seed=seed)
    with torch.no_grad():
        net["one"].weight.mul_(size)
    weight = net["one"].weight.detach().clone()
    quantize(net, ("one",), kind=kind, double=double)
    found = net["one"].weight
    assert found.shape == weight.shape
    # A level is at most 0.16 of the largest value of its block away; double quantization adds a 254th of the spread.
    assert (found - weight).abs().max() <= 0.17 * weight.abs().max()


def test_gradients_go_to_inputs_only_and_no_weight_is_kept():
    net = layer(96, 128)
    quantize(net, ("one",))
    assert isinstance(net["one"], QuantizedLinear)
    dense, bias = net["one"].weight, net["one"].bias
    x = torch.randn(4, 128, requires_grad=True)
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = net["one"](x)
    assert torch.equal(out, F.linear(x, dense) + bias)
    out.square().sum().backward()
    assert torch.allclose(x.grad, 2 * out.detach() @ dense, atol=1e-5)
    assert not kept  # a dense layer would keep its weight
    assert not any(p.requires_grad for p in net.parameters())


def test_bfloat16_in_and_out():
    net = layer(8, 64).to(torch.bfloat16)
    quantize(net, ("one",))
    assert net["one"](torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert net["one"].weight.dtype == torch.bfloat16


def test_state_goes_and_comes():
    one, two = layer(8, 64, seed=1), layer(8, 64, seed=2)
    for net in (one, two):
        quantize(net, ("one",))
    two.load_state_dict(one.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(one["one"](x), two["one"](x))


@pytest.mark.parametrize(("kind", "most"), [("nf4", 0.03), ("int8", 0.003)])
def test_the_loss_stays_close(kind, most):
    packed, network = peft.question(), peft.qwen2_vl()

    def loss() -> float:
        wanted = torch.from_numpy(packed.tokens[1:])
        return F.cross_entropy(peft.logits(network, packed)[:-1], wanted).item()

    full = loss()
    done = quantize(network, ("language.layers.*", "vision.*", "adapter.*"), kind=kind)
    assert len(done.layers) == 3 * 7 + 2 * 4 + 2
    # Random weights, the worst case: all layers matter equally. Seen: 6.848 in float32, 6.906 in NF4, 6.846 in int8.
    assert abs(loss() - full) < most * full


def test_updates_are_learned_beside_quantized_weights(tmp_path):
    packed, network = peft.question(), peft.qwen2_vl()
    quantize(network, ("language.layers.*",))
    plain = peft.logits(network, packed)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    apply(network, Lora(targets=("language.layers.*",), rank=4))
    assert torch.equal(peft.logits(network, packed), plain)
    learning = [p for n, p in network.named_parameters() if ".lora." in n]
    optimizer = torch.optim.AdamW(learning, lr=2e-2)
    losses = []
    for _ in range(6):
        value = F.cross_entropy(network(packed).logits[:-1], torch.from_numpy(packed.tokens[1:]))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 1
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items() if name in before)
    live = peft.logits(network, packed)
    with pytest.raises(ConfigError, match="foveal convert --merge"):
        merge(network)
    save_adapter(network, tmp_path, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG)
    again = peft.qwen2_vl()
    quantize(again, ("language.layers.*",))
    open_adapter(again, tmp_path, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG)
    assert torch.equal(peft.logits(again, packed), live)
    strip(network)
    assert not adapted(network)
    assert torch.equal(peft.logits(network, packed), plain)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "fp4"}, "did you mean 'nf4'"),
        ({"targets": ("language.lyers.*",)}, "did you mean"),
        ({"targets": ("language.embed",)}, "no layer .* matches 'language.embed'"),
    ],
)
def test_wrong_settings_are_named(change, match):
    network = peft.qwen2_vl()
    with pytest.raises(ConfigError, match=match):
        quantize(network, **change)


def test_updates_come_after_quantizing():
    network = peft.qwen2_vl()
    apply(network, Lora(targets=("language.layers.*",)))
    with pytest.raises(ConfigError, match="quantize before updates are applied"):
        quantize(network)
