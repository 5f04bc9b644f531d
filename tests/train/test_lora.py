"""Which layers `Lora` chooses, that nothing changes before training, and that training changes the updates only."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.errors import ConfigError, WeightsError
from foveal.families.describe import families
from foveal.families.load import name_map
from foveal.nn.lora import adaptable, adapted
from foveal.train.loop import run
from foveal.train.lora import Lora, adapting, apply, exporting, merge, open_adapter, save_adapter, strip
from foveal.train.stage import Stage
from foveal.train.trainer import train
from foveal.weights.names import NameMap
from foveal.weights.peft import Adapter, Thin, read_adapter, write_adapter
from tests.helpers import peft, training


def test_outputs_are_bit_for_bit_the_same_at_the_start():
    network, packed = peft.qwen2_vl(tied=False), peft.question()
    plain = peft.logits(network, packed)
    apply(network, Lora(targets=("vision.*", "adapter.*", "language.*", "language.head", "language.embed")))
    assert torch.equal(peft.logits(network, packed), plain)
    assert len(adapted(network)) == len(adaptable(network))
    assert all(p.a.abs().sum() > 0 and not p.b.any() for layer in adapted(network).values() for p in layer.parts)


def test_joined_and_absorbed_weights_carry_updates_too():
    """Of every family: no layer can be adapted without effect."""
    for name in ("qwen_vl", "deepseek_vl2", "siglip"):
        family = families()[name]
        network = peft.fill(family.build(family.size("tiny")))
        names = apply(network, Lora(targets=("*",), rank=2))
        for layer in adapted(network).values():
            with torch.no_grad():
                layer.parts[0].b.fill_(0.5)
            part = layer.parts[0]
            assert torch.allclose(layer.weight - layer.frozen, part.update(), atol=1e-5) if part.rows else True
        assert any(n.endswith(("qkv", "kv_up")) for n in names)


@pytest.mark.parametrize(
    ("targets", "count", "first"),
    [
        (("language.layers.*",), 3 * 7, "language.layers.0.attention.q"),
        (("language.*",), 3 * 7, "language.layers.0.attention.q"),
        (("vision.*.qkv", "adapter.*"), 2 + 2, "vision.blocks.0.attention.qkv"),
        (("language.layers.?.attention.[qv].weight",), 6, "language.layers.0.attention.q"),
        (("*",), 3 * 7 + 2 * 4 + 2, "vision.blocks.0.attention.qkv"),
        (("language.head", "language.embed"), 2, "language.embed"),
    ],
)
def test_patterns(targets, count, first):
    names = apply(peft.qwen2_vl(tied=False), Lora(targets=targets))
    assert (len(names), names[0]) == (count, first)


def test_values_by_pattern():
    network = peft.qwen2_vl()
    settings = Lora(rank=4, alpha=8, ranks=(("*.attention.*", 2),), alphas=(("*.mlp.down", 3.0),), rslora=True)
    apply(network, settings)
    parts = {name: layer.parts[0] for name, layer in adapted(network).items()}
    assert parts["language.layers.0.attention.q"].rank == 2
    assert (parts["language.layers.0.mlp.up"].rank, parts["language.layers.0.mlp.up"].scale) == (4, 4.0)
    assert parts["language.layers.0.mlp.down"].scale == 1.5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"targets": ("language.layers.*.attn.q",)}, r"did you mean 'language\.layers\.\*\.attention\.q'"),
        ({"targets": ("*", "language.norm")}, "matches 'language.norm'"),
        ({"ranks": (("vision.*", 3),)}, r"matches 'vision\.\*'"),
        ({"targets": ()}, "targets is empty"),
        ({"rank": 0}, "must be at least 1"),
        ({"ranks": (("*", -1),)}, "must be at least 1"),
        ({"dropout": 1.5}, "dropout is 1.5"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    network = peft.qwen2_vl()
    with pytest.raises(ConfigError, match=match):
        apply(network, Lora(**settings))
    assert not adapted(network)


def test_a_tied_embedding_is_refused():
    with pytest.raises(ConfigError, match="vocabulary head too"):
        apply(peft.qwen2_vl(tied=True), Lora(targets=("language.embed",)))


def test_training_merging_and_opening_again(tmp_path):
    network, packed = peft.qwen2_vl(), peft.question()
    before = {name: p.clone() for name, p in network.named_parameters()}
    apply(network, Lora(targets=("language.layers.*", "vision.*", "adapter.*"), rank=4, dropout=0.1))
    assert not any(p.requires_grad for n, p in network.named_parameters() if ".lora." not in n)
    stage = Stage(
        name="tune", steps=6, batch=1, trainable=(("*.lora.*", 2e-2), ("*", None)), warmup=0, weight_decay=0.0,
    )  # fmt: skip
    losses = []

    def loss(_):
        value = F.cross_entropy(network(packed).logits[:-1], torch.from_numpy(packed.tokens[1:]))
        losses.append(value.item())
        return value, {}

    run(stage, network, loss, lambda first: range(first, stage.steps), tmp_path / "run")
    assert losses[-1] < losses[0] - 1
    for name, parameter in network.named_parameters():
        assert name not in before or torch.equal(before[name], parameter)
    live = peft.logits(network, packed)
    save_adapter(network, tmp_path / "adapter", family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG, base="tiny")
    again = peft.qwen2_vl()
    open_adapter(again, tmp_path / "adapter", family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG)
    assert torch.equal(peft.logits(again, packed), live)
    merge(network)
    strip(network)
    # Seen: 5e-6.
    assert (peft.logits(network, packed) - live).abs().max() < 2e-5


def test_a_run_learns_and_exports_an_adapter(tmp_path):
    stage = training.stage(steps=4, trainable=(("*.lora.*", 5e-3), ("*", None)))
    lora = Lora(targets=("language.layers.*",), rank=2)
    run = training.run(tmp_path, stage, adapt=adapting(lora), export=exporting("toy"))
    before = {name: p.clone() for name, p in replace(run, adapt=None).load().network.named_parameters()}
    train(run)
    folder = tmp_path / stage.name / "model"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = replace(run, adapt=None).load()
    open_adapter(again.network, folder, family=again.family, config=again.config)
    parameters = dict(again.network.named_parameters())
    assert all(torch.equal(before[name], parameters[name]) for name in before)
    assert all(p.b.abs().sum() > 0 for layer in adapted(again.network).values() for p in layer.parts)


def test_a_network_with_updates_is_not_saved_as_a_checkpoint(tmp_path):
    run = training.run(tmp_path, adapt=adapting(Lora()))
    loaded = run.load()
    with pytest.raises(WeightsError, match=r"carry updates .* merge and strip it first"):
        run.save(loaded, tmp_path / "model")
    assert not (tmp_path / "model").exists()


MAPS = {name: name_map(family) for name, family in families().items()}
LAYERS = [
    (name, published.removesuffix(".weight"), rule.ours.removesuffix(".weight"))
    for name, names in MAPS.items()
    for rule in names.rules
    for published, turned, ones in zip(rule.published, rule.transposed, rule.ones, strict=True)
    if published.endswith(".weight") and rule.ours.endswith(".weight") and not turned and not ones
]


@given(layer=st.sampled_from(LAYERS), numbers=st.tuples(*[st.integers(0, 99)] * 3), nested=st.booleans())
def test_every_published_layer_is_found_under_all_its_spellings(layer, numbers, nested):
    name, published, ours = layer
    names = MAPS[name]
    values = dict(zip("ijknms", [*numbers, *numbers], strict=True))
    path, wanted = published.format(**values), ours.format(**values)
    spelled = names.module_path(path) if nested else path
    place = names.place(f"{spelled}.weight")
    assert place is not None and place.ours == f"{wanted}.weight"
    assert path + ".weight" in names.sources(place.ours)
    assert names.official(spelled) == path


@given(
    chosen=st.lists(st.sampled_from(LAYERS), min_size=1, max_size=6, unique_by=lambda v: v[0] + v[1]),
    number=st.integers(0, 40),
    ranks=st.lists(st.integers(1, 5), min_size=6, max_size=6),
    alphas=st.lists(st.sampled_from([1.0, 8.0, 16.5]), min_size=6, max_size=6),
    rslora=st.booleans(),
    nested=st.booleans(),
)
def test_adapters_of_every_family_survive_their_files(tmp_path_factory, chosen, number, ranks, alphas, rslora, nested):
    family = chosen[0][0]
    names: NameMap = MAPS[family]
    thin = []
    for (other, published, _), rank, alpha in zip(chosen, ranks, alphas, strict=False):
        if other == family:
            path = published.format(**dict.fromkeys("ijknms", number))
            place = names.place(f"{path}.weight")
            thin.append(Thin(module=path, place=place, a=torch.randn(rank, 3), b=torch.randn(2, rank), alpha=alpha))
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(folder, Adapter(thin=tuple(thin), rslora=rslora, nested=nested), names)
    again = read_adapter(folder, names)
    assert again.rslora == rslora
    found = {t.module: t for t in again.thin}
    assert found.keys() == {t.module for t in thin}
    for one in thin:
        other = found[one.module]
        assert (other.place, other.alpha) == (one.place, one.alpha)
        assert torch.equal(other.a, one.a)
        assert torch.equal(other.b, one.b)
