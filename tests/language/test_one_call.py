"""A layer as one call of compiled code: the same bits as its parts, and only where nobody could tell."""

import copy
import pickle

import pytest
import torch
from torch import nn

from foveal.engine.prepare import compact, prepare, restore
from foveal.engine.quantize import quantize_network
from foveal.families.adapter import open_adapter
from foveal.families.describe import families
from foveal.families.load import random_network
from foveal.families.quantize import settings
from foveal.families.qwen2_vl import FAMILY as QWEN2_VL
from foveal.nn import compact as compact_layers
from foveal.nn.native import dense
from foveal.nn.native import layer as native
from tests.helpers import peft

AXES = {"deepseek_vl": 1, "deepseek_vl2": 1, "qwen_vl": 2, "qwen2_vl": 3, "qwen2_5_vl": 3, "qwen3_vl": 3}
WHOLE = ("deepseek_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families whose attention and MLPs the kernel knows."""

pytestmark = pytest.mark.skipif(not native.computes(1), reason="this machine cannot build or run the kernel")


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of the kernel."""
    found = []
    call = native.Layer.__call__
    monkeypatch.setattr(native.Layer, "__call__", lambda self, *args: found.append(len(args[0])) or call(self, *args))
    return found


def tiny(name, form="plain"):
    family = families()[name]
    network = random_network(family, family.size("tiny"), seed=3, std=0.1).bfloat16().eval().requires_grad_(False)
    if form == "compact":
        prepare(network, compact)
    elif form == "joined":
        prepare(network, lambda name, layer: None)
    elif form != "plain":
        quantize_network(network, settings(form))
    return network


def step(network, axes, lengths, *, cache=None):
    """Scores after some new tokens of two sequences that hold 25 and 15."""
    decoder, (a, b) = network.language, lengths
    with torch.inference_mode():
        cache = decoder.new_cache(2) if cache is None else cache
        positions = torch.cat((torch.arange(25), torch.arange(15))).expand(axes, -1).clone()
        decoder(decoder.embed(torch.arange(40) % 50), positions, [0, 25, 40], cache=cache)
        later = torch.cat((25 + torch.arange(a), 15 + torch.arange(b))).expand(axes, -1).clone()
        out = decoder(decoder.embed(torch.arange(a + b) + 3), later, [0, a, a + b], cache=cache)
        kept = [t[:, : store.length].clone() for store in cache.stores for layer in store._layers for t in layer]
        return [decoder.logits(out), *kept]


def by_parts(network, axes, lengths):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "computes", lambda rows: False)
        return step(network, axes, lengths)


@pytest.mark.parametrize("lengths", [(1, 1), (1, 0), (0, 1), (5, 1), (16, 16)])
@pytest.mark.parametrize("form", ["plain", "joined", "compact", "int8", "int4"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_call_gives_the_bits_of_the_parts(name, form, lengths, calls, monkeypatch):
    monkeypatch.setattr(compact_layers, "SMALLEST", 1)
    network = tiny(name, form)
    said, expected = step(network, AXES[name], lengths), by_parts(network, AXES[name], lengths)
    few = dense.way() == dense.TILES or sum(lengths) <= dense.DOT_ROWS
    assert len(calls) == (len(network.language.layers) if few else 0)
    assert all(torch.equal(a, b) for a, b in zip(said, expected, strict=True))


@pytest.mark.parametrize("name", sorted(set(AXES) - set(WHOLE)))
def test_attention_of_another_kind_is_computed_by_its_parts(name, calls):
    assert step(tiny(name), AXES[name], (1, 1)) and not calls


def test_experts_follow_the_attention_that_is_one_call(calls):
    network = tiny("qwen2_vl")
    for layer in network.language.layers[1:]:
        layer.mlp = Doubling(layer.mlp)
    said, expected = step(network, 3, (1, 1)), by_parts(network, 3, (1, 1))
    assert len(calls) == len(network.language.layers)
    assert all(torch.equal(a, b) for a, b in zip(said, expected, strict=True))


class Doubling(nn.Module):
    """An MLP that the kernel does not know."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return 2 * self.mlp(x)


def test_many_new_tokens_are_no_call(calls):
    network = tiny("qwen2_vl")
    step(network, 3, (17, 1))
    step(network, 3, (40, 40))
    assert not calls


@pytest.mark.parametrize("part", ["", "mlp", "mlp.down", "attention", "attention.q", "norm1", "norm2"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_who_watches_a_part_sees_it(part, register, calls):
    network, seen = tiny("qwen2_vl"), []
    step(network, 3, (1, 1))
    before = len(calls)
    hook = getattr(network.language.layers[1].get_submodule(part), register)(lambda *args: seen.append(args[0]))
    said = step(network, 3, (1, 1))
    assert seen and len(calls) == 2 * before - (part != "")
    hook.remove()
    assert torch.equal(step(network, 3, (1, 1))[0], said[0]) and len(calls) == 3 * before - (part != "")


def test_what_is_changed_is_seen(calls):
    """Weights written to, replaced, another eps, another layer: as the parts would have it."""
    network = tiny("qwen2_vl")
    layer = network.language.layers[1]
    found = [step(network, 3, (1, 1))[0]]

    def assert_seen():
        found.append(step(network, 3, (1, 1))[0])
        assert not torch.equal(found[-1], found[-2])
        assert torch.equal(found[-1], by_parts(network, 3, (1, 1))[0])

    layer.mlp.up.weight.mul_(2)
    assert_seen()
    layer.mlp.up.weight = nn.Parameter(layer.mlp.up.weight * 0.5, requires_grad=False)
    assert_seen()
    layer.norm2.eps = 0.5
    assert_seen()
    layer.attention.out = copy.deepcopy(layer.attention.q)
    assert_seen()
    quantize_network(network, settings("int8"))
    assert_seen()
    assert len(calls) == len(found) * len(network.language.layers)


def test_prepared_and_restored_again(monkeypatch):
    monkeypatch.setattr(compact_layers, "SMALLEST", 1)
    network = tiny("qwen2_vl")
    before = step(network, 3, (1, 1))[0]
    prepare(network, compact)
    assert torch.equal(step(network, 3, (1, 1))[0], before) or dense.way() != dense.TILES
    restore(network)
    assert torch.equal(step(network, 3, (1, 1))[0], before)


def test_a_copy_is_on_its_own(calls):
    network = tiny("qwen2_vl")
    before = step(network, 3, (1, 1))[0]
    others = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]  # noqa: S301 (our own)
    for other in others:
        other.language.layers[0].mlp.up.weight.zero_()
    calls.clear()
    assert not any(torch.equal(step(other, 3, (1, 1))[0], before) for other in others)
    assert torch.equal(step(network, 3, (1, 1))[0], before)
    assert len(calls) == 3 * len(network.language.layers)


def test_other_types_gradients_and_updates_are_left_to_the_parts(calls):
    step(tiny("qwen2_vl").float(), 3, (1, 1))
    network = tiny("qwen2_vl").requires_grad_(True)
    decoder = network.language
    cache = decoder.new_cache(1)
    decoder(decoder.embed(torch.arange(3)), torch.arange(3).expand(3, -1), [0, 3], cache=cache)
    assert not calls
    adapted = peft.qwen2_vl().bfloat16()
    open_adapter(adapted, peft.FOLDER / "listed", family=QWEN2_VL, config=peft.QWEN2_VL_CONFIG)
    adapted.requires_grad_(False)
    said, expected = step(adapted, 3, (1, 1)), by_parts(adapted, 3, (1, 1))
    assert torch.equal(said[0], expected[0])


def test_a_patched_forward_is_used(calls):
    network = tiny("qwen2_vl")
    plain = step(network, 3, (1, 1))[0]
    mlp = network.language.layers[1].mlp
    mlp.forward = lambda x: torch.zeros_like(x)
    assert not torch.equal(step(network, 3, (1, 1))[0], plain)


def test_threads_change_no_bit():
    network, before = tiny("qwen2_vl"), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(step(network, 3, (3, 1))[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
