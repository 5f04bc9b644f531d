"""PEFT's adapters on networks of families: files that PEFT made (see tests/helpers/peft.py), and our own."""

import json
import re
import shutil
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveal.core.errors import ConfigError, HubError, WeightsError
from foveal.families.adapter import open_adapter, save_adapter
from foveal.families.describe import families
from foveal.families.load import name_map
from foveal.nn.lora import adaptable, adapted, merge, strip
from tests.helpers import peft

WHOLE = {"regex": ("adapter.down.weight", "adapter.down.bias"), "listed": ()}


def opened(folder, **changes):
    network = peft.qwen2_vl(**changes)
    names = open_adapter(network, folder, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG)
    return network, names


def recorded(name):
    return load_file(peft.FOLDER / name / "recorded.safetensors")["recorded"]


@pytest.fixture
def copy(tmp_path):
    """A changeable copy of a fixture; `change(config, tensors)` rewrites its two files."""

    def make(name, change):
        folder = tmp_path / name
        shutil.copytree(peft.FOLDER / name, folder)
        config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        said, values = json.loads(config.read_text()), load_file(tensors)
        said, values = change(said, values)
        config.write_text(json.dumps(said))
        save_file(values, tensors)
        return folder

    return make


@pytest.mark.parametrize("name", ["listed", "regex"])
def test_an_adapter_of_peft_gives_the_logits_of_peft(name):
    network, names = opened(peft.FOLDER / name)
    assert names == sorted(adapted(network))
    found = peft.logits(network, peft.question())[-peft.SHOWN :]
    # Seen: 4.1e-6 (logits up to 5.2); without the adapter they differ by more than 1.
    assert (found - recorded(name)).abs().max() < 1e-5
    assert (peft.logits(peft.qwen2_vl(), peft.question())[-peft.SHOWN :] - recorded(name)).abs().max() > 1


def test_patterns_of_ranks_and_alphas_hold():
    network, _ = opened(peft.FOLDER / "listed")
    layers = adapted(network)
    first = {n.removeprefix("language.layers."): p for n, layer in layers.items() for p in layer.parts}
    assert (first["0.attention.q"].rank, first["1.attention.q"].rank, first["0.attention.v"].rank) == (3, 4, 2)
    assert (first["0.mlp.down"].alpha, first["vision.blocks.0.attention.qkv"].alpha) == (8, 3)


def test_thirds_of_a_joined_layer():
    """CLIP's q_proj and v_proj are rows of our `qkv`."""
    network = peft.clip()
    names = open_adapter(network, peft.FOLDER / "clip", family=peft.CLIP, config=peft.CLIP_CONFIG)
    assert "vision.tower.blocks.0.attention.qkv" in names
    layer = network.get_submodule("text.layers.1.attention.qkv")
    assert sorted((p.start, p.rows) for p in layer.parts) == [(0, 32), (64, 32)]
    # Seen: 1.2e-7 on vectors of length 1.
    assert (peft.vectors(network) - recorded("clip")).abs().max() < 1e-6
    assert (peft.vectors(peft.clip()) - recorded("clip")).abs().max() > 0.01


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", ["listed", "regex"])
def test_what_we_save_opens_again(name, nested, tmp_path):
    network, _ = opened(peft.FOLDER / name)
    save_adapter(
        network, tmp_path / "out", family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG, whole=WHOLE[name],
        nested=nested, base="tiny",
    )  # fmt: skip
    again, _ = opened(tmp_path / "out")
    packed = peft.question()
    assert torch.equal(peft.logits(again, packed), peft.logits(network, packed))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    if nested:  # the very keys and tensors that PEFT wrote
        theirs = load_file(peft.FOLDER / name / "adapter_model.safetensors")
        mine = load_file(tmp_path / "out/adapter_model.safetensors")
        assert theirs.keys() == mine.keys()
        assert all(torch.equal(theirs[k], mine[k]) for k in theirs)


def test_joined_layers_are_saved_as_their_thirds(tmp_path):
    network = peft.clip()
    open_adapter(network, peft.FOLDER / "clip", family=peft.CLIP, config=peft.CLIP_CONFIG)
    save_adapter(network, tmp_path, family=peft.CLIP, config=peft.CLIP_CONFIG)
    theirs = load_file(peft.FOLDER / "clip/adapter_model.safetensors")
    mine = load_file(tmp_path / "adapter_model.safetensors")
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[k], mine[k]) for k in theirs)


RESPELLINGS = {
    "no prefix": lambda k: k.removeprefix("base_model.model."),
    "adapter's name": lambda k: re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", k),
    "saved modules": lambda k: re.sub(r"mlp\.2\.(weight|bias)", r"mlp.2.modules_to_save.default.\1", k),
    "published": lambda k: k.replace("model.model.visual.", "model.visual.").replace("language_model.", ""),
}


@pytest.mark.parametrize("respell", RESPELLINGS.values(), ids=RESPELLINGS.keys())
def test_both_spellings_and_all_endings_are_read(respell, copy):
    def change(said, values):
        said["target_modules"] = said["target_modules"].replace("language_model", "")
        changed = {respell(k): v for k, v in values.items()}
        return said, changed

    network, _ = opened(copy("regex", change))
    assert (peft.logits(network, peft.question())[-peft.SHOWN :] - recorded("regex")).abs().max() < 1e-5


def test_merged_equals_live():
    network, _ = opened(peft.FOLDER / "listed")
    live = peft.logits(network, peft.question())
    merge(network)
    strip(network)
    # Seen: 4.1e-6.
    assert (peft.logits(network, peft.question()) - live).abs().max() < 1e-5
    assert network.state_dict().keys() == peft.qwen2_vl().state_dict().keys()


def _without(key):
    def change(said, values):
        return said, {k: v for k, v in values.items() if key not in k}

    return change


def _saying(**settings):
    return lambda said, values: ({**said, **settings}, values)


def _holding(**tensors):
    return lambda said, values: (said, values | {k.replace("__", "."): v for k, v in tensors.items()})


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (_without("layers.1.self_attn.q_proj.lora_A"), WeightsError, "q_proj lacks lora_A"),
        (_without("layers.1.self_attn.q_proj"), WeightsError, r"updates of 1 layers .*layers\.1\.attention\.q"),
        (_saying(target_modules=["q_proj", "v_proj", "qkv"]), WeightsError, r"down_proj.* target_modules .* not name"),
        (_saying(r=5), WeightsError, "says rank 5"),
        (_saying(r="4"), ConfigError, "r is '4'"),
        (_saying(use_dora=True), ConfigError, "use_dora = True is not computed"),
        (_saying(bias="all"), ConfigError, "bias is 'all'"),
        (_saying(lora_bias=True), ConfigError, "lora_bias"),
        (_saying(target_parameters=["x"]), ConfigError, "target_parameters"),
        (_saying(something_new=3), ConfigError, "something_new = 3"),
        (_saying(init_lora_weights="pissa_niter_4"), ConfigError, "changes the base weights"),
        (_saying(peft_type="LOHA"), ConfigError, "'LOHA'; LORA is read"),
        (_saying(target_modules="("), ConfigError, "no regular expression"),
        (_saying(target_modules=7), ConfigError, "target_modules is 7"),
        (_holding(visual__blocks__0__attn__qkv__lora_B__other__weight=torch.zeros(1)), WeightsError, "twice|several"),
        (_holding(model__layer__1__x__lora_A__weight=torch.zeros(1, 1)), WeightsError, "no layer of qwen2_vl"),
        (_holding(bias=torch.zeros(1)), WeightsError, "belongs to no layer"),
        (_holding(model__layers__0__nothing__weight=torch.zeros(1)), WeightsError, "belongs to no layer"),
        (_holding(model__norm__lora_magnitude_vector=torch.zeros(1)), ConfigError, "DoRA"),
        (_holding(model__norm__weight=torch.zeros(3)), WeightsError, r"shape \[3\], expected \[64\]"),
    ],
)  # fmt: skip
def test_wrong_adapters_are_named_and_change_nothing(copy, change, kind, match):
    folder = copy("listed", change)
    network = peft.qwen2_vl()
    with pytest.raises(kind, match=match):
        open_adapter(network, folder, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG)
    assert not adapted(network)


def test_an_adapter_of_another_size_is_refused():
    with pytest.raises(WeightsError, match="the adapter is of another model"):
        opened(peft.FOLDER / "listed", mlp_width=64)


def test_folders_that_are_no_adapter(tmp_path):
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json; pass the folder of an adapter"):
        opened(tmp_path)
    with pytest.raises(HubError):
        opened(tmp_path / "none")
    shutil.copy(peft.FOLDER / "listed/adapter_config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"has no adapter_model\.safetensors"):
        opened(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(WeightsError, match="no whole safetensors file"):
        opened(tmp_path)


def test_files_of_torch_are_read_without_running_them(copy):
    folder = copy("listed", lambda said, values: (said, values))
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    network, _ = opened(folder)
    assert (peft.logits(network, peft.question())[-peft.SHOWN :] - recorded("listed")).abs().max() < 1e-5


def test_what_peft_cannot_say_is_not_saved(tmp_path):
    with pytest.raises(WeightsError, match="no update to save"):
        save_adapter(peft.qwen2_vl(), tmp_path, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG)
    network, _ = opened(peft.FOLDER / "listed")
    with pytest.raises(ConfigError, match=r"did you mean 'adapter\.down\.weight'"):
        save_adapter(
            network, tmp_path, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG, whole=["adapter.dawn.weight"]
        )
    tied, _ = opened(peft.FOLDER / "listed", tied=True)
    with pytest.raises(ConfigError, match="the weight of the vocabulary head too"):
        save_adapter(tied, tmp_path, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG, whole=["language.embed.weight"])


@pytest.mark.parametrize(
    ("name", "helper", "settings"),
    [
        ("qwen2_vl", "checkpoints", {}),
        ("qwen2_5_vl", "qwen2_5_vl", {}),
        ("qwen3_vl", "qwen3_vl", {}),
        ("clip", "clip", {}),
        ("siglip", "siglip", {}),
        ("deepseek_vl", "deepseek_vl", {"hybrid": True}),
        ("deepseek_vl", "deepseek_vl", {"hybrid": False}),
    ],
)
def test_layers_have_the_paths_of_modules_of_transformers(name, helper, settings):
    """PEFT finds what it adapts by these."""
    theirs = import_module(f"tests.helpers.{helper}").oracle(**settings)
    family = families()[name]
    config = family.from_published(theirs.config.to_dict())
    with torch.device("meta"):
        network = family.build(config)
    names, modules = name_map(family, family.layout(config)), {path for path, _ in theirs.named_modules()}
    sources = [p for ours in adaptable(network) for p in names.sources(f"{ours}.weight") or {}]
    paths = [names.module_path(p.removesuffix(".weight")) for p in sources if p.endswith(".weight")]
    assert len(paths) >= len(sources) - 1  # SigLIP's pooling head keeps its joined weight outside of a linear layer
    assert not set(paths) - modules
