"""The prepared network answers as the loaded one does, and can be undone exactly."""

import copy

import pytest
import torch
from torch import nn

import foveal
from foveal.core.errors import ConfigError
from foveal.engine.prepare import Gradual, is_prepared, prepare, restore, restored, weights_key
from foveal.families.adapter import open_adapter
from foveal.families.describe import families
from foveal.families.load import random_network
from foveal.families.quantize import Quantization
from foveal.families.qwen2_vl import FAMILY as QWEN2_VL
from foveal.families.vlm import VLM
from foveal.nn import compact
from foveal.nn import packed as packed_layers
from foveal.nn.compact import CompactLinear
from foveal.nn.joined import Joint
from foveal.nn.lora import adapted
from foveal.nn.native import dense
from foveal.nn.packed import PackedLinear, packs
from foveal.nn.quantized_linear import QuantizedLinear
from foveal.vision import vit
from tests.helpers import peft

AXES = {"deepseek_vl": 1, "deepseek_vl2": 1, "qwen_vl": 2, "qwen2_vl": 3, "qwen2_5_vl": 3, "qwen3_vl": 3}


def tiny(name, dtype=torch.bfloat16):
    family = families()[name]
    network = random_network(family, family.size("tiny"), seed=3, std=0.1)
    return network.to(dtype).eval().requires_grad_(False)


def values(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def texts(network, axes):
    """Logits of two sequences at once, and of one more token after each."""
    tokens = torch.arange(40) % 50
    positions = torch.cat((torch.arange(25), torch.arange(15))).expand(axes, -1).clone()
    decoder = network.language
    with torch.inference_mode():
        whole = decoder.logits(decoder(decoder.embed(tokens), positions, [0, 25, 40]))
        cache = decoder.new_cache(2)
        decoder(decoder.embed(tokens), positions, [0, 25, 40], cache=cache)
        later = torch.tensor([[25, 15]] * axes)
        step = decoder(decoder.embed(torch.tensor([7, 8])), later, [0, 1, 2], cache=cache)
        return torch.cat((whole, decoder.logits(step))).float()


def difference(a, b):
    """The largest difference, as a part of the deviation of all values."""
    return float((a - b).abs().max() / b.std())


@pytest.mark.parametrize("name", sorted(AXES))
def test_prepared_decoders_say_the_same(name):
    network = tiny(name)
    assert isinstance(network, VLM)
    plain = texts(network, AXES[name])
    exact = texts(copy.deepcopy(network).float(), AXES[name])
    prepare(network)
    said = texts(network, AXES[name])
    # Two bfloat16 computations of one thing: as far from each other (worst seen: 0.058) as from float32 (0.058, 0.057).
    assert difference(said, plain) < 0.1
    assert difference(said, exact) < 1.2 * difference(plain, exact) + 0.01


@pytest.mark.parametrize("name", sorted(families()))
def test_preparation_can_be_undone_exactly(name):
    network = tiny(name)
    before = values(network)
    prepare(network)
    assert is_prepared(network)
    assert not any(packs(m) for n, m in network.named_modules() if not n.endswith(("kv_up", "qkv")) and "pool" not in n)
    prepare(network)  # once more changes nothing
    restore(network)
    assert not is_prepared(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[n]) for n, tensor in after.items())


@pytest.mark.parametrize("name", sorted(families()))
def test_every_packed_layer_is_the_plain_one(name):
    network = tiny(name)
    generator = torch.Generator().manual_seed(0)
    plain = {n: m for n, m in network.named_modules() if packs(m)}
    prepare(network)
    seen = 0
    for n, module in network.named_modules():
        if isinstance(module, PackedLinear) and n in plain:
            x = torch.randn(5, module.in_features, generator=generator).bfloat16()
            torch.testing.assert_close(module(x), plain[n](x), rtol=0.008, atol=0.004)  # one rounding of bfloat16
            seen += 1
    assert seen > 5


def test_float32_is_only_joined_and_equal():
    network = tiny("qwen2_vl", torch.float32)
    plain = texts(network, 3)
    prepare(network)
    assert isinstance(network.language.layers[0].attention.qkv, Joint)
    assert not any(isinstance(m, PackedLinear) for m in network.modules())
    assert difference(texts(network, 3), plain) < 1e-5  # worst seen: 0


def test_tied_heads_get_a_form_of_their_own():
    network = peft.qwen2_vl(tied=True).bfloat16()
    before = values(network)
    plain = texts(network, 3)
    prepare(network)
    assert isinstance(network.language.tied_head, PackedLinear) and network.language.head is None
    assert difference(texts(network, 3), plain) < 0.1  # seen: 0.041
    restore(network)
    assert network.language.tied_head is None
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["listed", "regex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_kept_beside_the_other_form(name, dtype):
    network = peft.qwen2_vl().to(dtype)
    open_adapter(network, peft.FOLDER / name, family=QWEN2_VL, config=peft.QWEN2_VL_CONFIG)
    network.requires_grad_(False)
    layers, before = sorted(adapted(network)), values(network)
    without = peft.logits(peft.qwen2_vl().to(dtype), peft.question()).float()
    plain = peft.logits(network, peft.question()).float()
    prepare(network)
    said = peft.logits(network, peft.question()).float()
    assert difference(said, plain) < (1e-5 if dtype == torch.float32 else 0.1)  # worst seen: 0 and 0.048
    assert difference(without, plain) > 0.5
    restore(network)
    assert sorted(adapted(network)) == layers
    after = network.state_dict()
    assert sorted(after) == sorted(before) and all(torch.equal(tensor, before[n]) for n, tensor in after.items())


def test_a_picture_gets_the_same_answer():
    network = peft.qwen2_vl().bfloat16()
    plain = peft.logits(network, peft.question()).float()
    prepare(network)
    assert difference(peft.logits(network, peft.question()).float(), plain) < 0.1  # seen: 0.038


class Doubled(nn.Module):
    """Another form, which does not give the weight back."""

    def __init__(self, layer):
        super().__init__()
        self.layer = [layer]

    def forward(self, x):
        return 2 * self.layer[0](x)


def test_any_form_can_take_the_place_of_layers_by_name():
    network = tiny("qwen2_vl")
    seen = []

    def double(name, layer):
        seen.append(name)
        return Doubled(layer) if name.endswith("mlp.down") else None

    prepare(network, double)
    assert "language.layers.0.attention.qkv" in seen and "language.layers.1.mlp.gate" in seen
    assert isinstance(network.language.layers[2].mlp.down, Doubled)
    assert isinstance(network.language.layers[2].mlp.up, nn.Linear)


def test_restored_for_a_while():
    network = tiny("qwen2_vl")
    prepare(network)
    with restored(network):
        assert not is_prepared(network)
    assert is_prepared(network)


def test_packed_layers_do_not_move():
    network = tiny("qwen2_vl")
    prepare(network)
    with pytest.raises(ConfigError, match="undo"):
        network.float()


def test_memory_that_was_written_to_is_not_given_back(tmp_path):
    """A changed weight of a mapped file keeps its change, also where it is the embedding that stays in use."""
    folder = tmp_path / "model"
    model = foveal.load(device="cpu")
    model.save(folder)
    again = foveal.load(folder, device="cpu")
    with torch.no_grad():
        again.network.language.embed.weight.mul_(0.5)
    half = again.network.language.embed.weight.clone()
    prepare(again.network)
    assert torch.equal(again.network.language.embed.weight, half)
    restore(again.network)
    assert torch.equal(again.network.language.embed.weight, half)


def test_embedding_of_a_mapped_file_stays_readable(tmp_path):
    folder = tmp_path / "model"
    foveal.load(device="cpu").save(folder)
    again = foveal.load(folder, device="cpu")
    before = again.network.language.embed.weight.clone()
    prepare(again.network)
    assert torch.equal(again.network.language.embed.weight, before)


def test_rows_are_taken_some_at_a_time(monkeypatch):
    """The tower and the MLPs give the same numbers whatever the rows that they take together."""
    network = peft.qwen2_vl().bfloat16()
    prepare(network)
    together = peft.logits(network, peft.question())
    monkeypatch.setattr(packed_layers, "ROWS", 5)
    monkeypatch.setattr(vit, "ROWS", 7)
    assert difference(peft.logits(network, peft.question()).float(), together.float()) < 0.1  # seen: 0


def packed_parts(network):
    return {name.split(".")[0] for name, m in network.named_modules() if isinstance(m, PackedLinear)}


def test_gradual_preparation_follows_what_is_used():
    network = peft.qwen2_vl().bfloat16()
    reference = peft.qwen2_vl().bfloat16()
    prepare(reference)
    gradual = Gradual(network, step_bytes=1)
    assert not gradual.advance() and packed_parts(network) == set()
    plain = peft.logits(reference, peft.question()).float()
    key = weights_key(network)
    for _ in range(20):
        texts(network, 3)
        assert weights_key(network) == key  # what was remembered stays known
    assert packed_parts(network) == {"language"}
    for _ in range(20):  # answers stay right whatever has been prepared so far
        assert difference(peft.logits(network, peft.question()).float(), plain) < 0.1
    assert packed_parts(network) == {"language", "adapter", "vision"} and not gradual.advance()
    assert torch.equal(peft.logits(network, peft.question()).float(), plain)
    assert weights_key(network) == key
    with torch.no_grad():
        network.language.norm.weight.mul_(2)
    assert weights_key(network) != key


def test_training_prepares_nothing():
    network = peft.qwen2_vl().bfloat16().requires_grad_(True)
    Gradual(network)
    for _ in range(3):
        network(peft.question()).logits.sum().backward()
    assert not is_prepared(network)


def test_a_prepared_network_has_no_state_to_save():
    network = peft.qwen2_vl().bfloat16()
    prepare(network)
    with pytest.raises(ConfigError, match="undo the preparation"):
        network.state_dict()


@pytest.fixture
def no_tiles(monkeypatch):
    """A processor for which the own kernel is not the fastest as it is."""
    monkeypatch.setattr(dense, "way", lambda: None)


def test_a_loaded_model_prepares_itself_and_saves_what_it_loaded(tmp_path, no_tiles):
    model = foveal.load(device="cpu", prepare=True)
    before = values(model.prepared)
    question = [{"role": "user", "content": "What is a crown?"}]
    first = model.chat(question, max_tokens=8, temperature=0)
    again = model.chat(question, max_tokens=8, temperature=0)
    assert packed_parts(model.prepared) == {"language"} and first.raw == again.raw
    model.save(tmp_path / "model")
    assert is_prepared(model.prepared)
    loaded = foveal.load(tmp_path / "model", device="cpu", prepare=False)
    assert loaded.chat(question, max_tokens=8, temperature=0).raw == first.raw
    assert not is_prepared(loaded.network)
    after = loaded.network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(t, before[n]) for n, t in after.items())


QUESTION = [{"role": "user", "content": "What is a crown?"}]


@pytest.fixture
def compact_here(monkeypatch):
    """Layers of the small model gain too."""
    if dense.way() != dense.TILES:
        pytest.skip("compact weights need tiles (AMX)")
    monkeypatch.setattr(compact, "SMALLEST", 1)


def compact_layers(network):
    return [name for name, m in network.named_modules() if isinstance(m, CompactLinear)]


def test_with_tiles_a_model_gets_the_compact_form_and_keeps_every_bit(tmp_path, compact_here):
    plain = foveal.load(device="cpu", dtype="bfloat16", prepare=False)
    model = foveal.load(device="cpu", dtype="bfloat16")
    packed = model.process(QUESTION)
    with torch.inference_mode():
        expected = plain.forward(packed).logits
        for _ in range(3):  # before, while and after it is prepared
            assert torch.equal(model.forward(packed).logits, expected)
    said = [m.chat(QUESTION, max_tokens=12, temperature=0) for m in (plain, model, model)]
    assert len({answer.raw for answer in said}) == 1
    found = compact_layers(model.prepared)
    assert any("mlp.down" in name for name in found) and all(name.startswith("language") for name in found)
    model.save(tmp_path / "model")
    assert compact_layers(model.prepared) == found
    after = foveal.load(tmp_path / "model", device="cpu").network.state_dict()
    assert all(torch.equal(t, after[n]) for n, t in plain.network.state_dict().items())


def test_who_asks_for_the_network_gets_it_as_it_was_loaded(compact_here):
    model = foveal.load(device="cpu", dtype="bfloat16")
    before = model.chat(QUESTION, max_tokens=12, temperature=0)
    assert is_prepared(model.prepared)
    network = model.network
    assert network is model.prepared and not is_prepared(network)
    with torch.no_grad():
        network.language.norm.weight.zero_()
    assert model.chat(QUESTION, max_tokens=12, temperature=0).raw != before.raw
    assert not is_prepared(model.network)  # for good


def test_all_at_once_on_demand(compact_here):
    model = foveal.load(device="cpu", dtype="bfloat16")
    model.prepare()
    assert not is_prepared(model.prepared)  # nothing has worked yet
    said = model.chat(QUESTION, max_tokens=1, temperature=0)
    model.prepare()
    assert len(compact_layers(model.prepared)) > 4 * len(model.prepared.language.layers)
    assert model.chat(QUESTION, max_tokens=1, temperature=0).raw == said.raw
    foveal.load(device="cpu", prepare=False).prepare()


def test_long_prompts_are_not_delayed(compact_here):
    model = foveal.load(device="cpu", dtype="bfloat16")
    long = model.process([{"role": "user", "content": "What is a crown? " * 40}])
    with torch.inference_mode():
        for _ in range(3):
            model.forward(long)
        assert not is_prepared(model.prepared)
        model.forward(model.process(QUESTION))
    assert is_prepared(model.prepared)


def test_quantized_layers_keep_their_form(compact_here):
    some = Quantization(bits=8, parts=("language.layers.0",))  # what is left would gain
    model = foveal.load(device="cpu", dtype="bfloat16", quantize=some)
    before = model.chat(QUESTION, max_tokens=12, temperature=0)
    assert not compact_layers(model.prepared)
    assert any(isinstance(m, QuantizedLinear) for m in model.network.modules())
    assert model.chat(QUESTION, max_tokens=12, temperature=0).raw == before.raw


def test_small_layers_stay_as_they_are():
    """They lie in a processor's cache: the model that ships has no other ones."""
    model = foveal.load(device="cpu")
    model.chat(QUESTION, max_tokens=4)
    assert not is_prepared(model.prepared)


def test_a_model_that_is_not_to_be_prepared(compact_here):
    model = foveal.load(device="cpu", dtype="bfloat16", prepare=False)
    model.chat(QUESTION, max_tokens=4)
    assert not is_prepared(model.prepared)


def test_other_types_are_left_alone(no_tiles):
    assert not foveal.load(device="cpu", dtype="float32", prepare=True).network.language._forward_pre_hooks
