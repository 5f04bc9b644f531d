"""CLIP's released sizes and configurations: parameters counted, names compared, what is not computed refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal.core.errors import ConfigError, InputError, WeightsError
from foveal.families.clip import FAMILY, from_published, to_published
from foveal.families.load import fitting_map, load, name_map
from foveal.families.plan import Planner
from foveal.vision.resnet_config import ResNetConfig
from tests.helpers import clip

PUBLISHED = Path(__file__).parent.parent / "data_files" / "published"
BIG_G = "CLIP-ViT-bigG-14-laion2B-39B-b160k"


def published(name: str) -> dict[str, Any]:
    return json.loads((PUBLISHED / name).read_text())


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("base-patch32", 151_277_313),
        ("base-patch16", 149_620_737),
        ("large-patch14", 427_616_513),
        ("large-patch14-336", 427_944_193),
        ("bigg-14", 2_539_567_105),
        ("rn50", 102_007_137),
        ("rn101", 119_688_033),
        ("rn50x4", 178_300_601),
        ("rn50x16", 290_979_217),
        ("rn50x64", 623_258_305),
    ],
)
def test_released_sizes_have_their_parameters(size: str, parameters: int):
    config = FAMILY.size(size)
    with torch.device("meta"):
        network = FAMILY.build(config)
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert FAMILY.parameters(config) == counted | {"scale": 1}
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("clip-vit-base-patch32/config.json", "base-patch32"),
        ("clip-vit-base-patch32/config.transformers-4.57.json", "base-patch32"),
        ("clip-vit-base-patch32/open_clip_ViT-B-32-quickgelu.json", "base-patch32"),
        ("clip-vit-base-patch16/config.json", "base-patch16"),
        ("clip-vit-base-patch16/open_clip_ViT-B-16-quickgelu.json", "base-patch16"),
        ("clip-vit-large-patch14/config.json", "large-patch14"),
        ("clip-vit-large-patch14/open_clip_ViT-L-14-quickgelu.json", "large-patch14"),
        ("clip-vit-large-patch14-336/open_clip_ViT-L-14-336-quickgelu.json", "large-patch14-336"),
        (f"{BIG_G}/open_clip_ViT-bigG-14.json", "bigg-14"),
        (f"{BIG_G}/open_clip_config.json", "bigg-14"),
    ],
)
def test_published_configurations_are_the_declared_sizes(file: str, size: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert from_published(published(file)) == FAMILY.size(size)
    assert not caplog.records


@pytest.mark.parametrize("size", sorted(FAMILY.sizes))
def test_writing_and_reading_keep_the_configuration(size: str, caplog: pytest.LogCaptureFixture):
    config = FAMILY.size(size)
    with caplog.at_level(logging.WARNING):
        assert from_published(json.loads(json.dumps(to_published(config)))) == config
    assert not caplog.records


@pytest.mark.parametrize("size", ["base-patch32", "large-patch14-336", "bigg-14", "tiny"])
def test_tensor_names_and_shapes_are_those_of_transformers(size: str):
    from transformers import CLIPConfig, CLIPModel

    config = FAMILY.size(size)
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(**to_published(config)))
        ours = FAMILY.build(config)
    names = name_map(FAMILY)
    written = {n for name in ours.state_dict() for n in names.sources(name)}
    assert written == set(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert theirs.config.text_config.eos_token_id == 2


@pytest.mark.parametrize("size", ["rn50", "rn101", "rn50x4", "rn50x16", "rn50x64"])
def test_tensor_names_and_shapes_of_residual_networks(size: str):
    config = FAMILY.size(size)
    assert isinstance(config.vision, ResNetConfig)
    with torch.device("meta"):
        network = FAMILY.build(config)
    names = name_map(FAMILY, "resnet")
    shapes = {}
    for name, tensor in network.state_dict().items():
        ((published_name, place),) = names.sources(name).items()
        shapes[published_name] = tuple(reversed(tensor.shape)) if place.transposed else tuple(tensor.shape)
    expected = clip.resnet_shapes(to_published(config)["model_cfg"])
    assert shapes == {n: s for n, s in expected.items() if not n.endswith("num_batches_tracked")}
    assert fitting_map(FAMILY, expected).where == "clip.resnet.map"


def test_the_layout_is_found_by_the_names():
    assert FAMILY.layouts() == [None, "original", "resnet"]
    state = clip.oracle().state_dict()
    assert fitting_map(FAMILY, state).where == "clip.map"
    assert fitting_map(FAMILY, [*state, "text_model.embeddings.position_ids"]).where == "clip.map"
    originals = clip.original(state)
    assert fitting_map(FAMILY, originals).where == "clip.original.map"
    assert fitting_map(FAMILY, [*originals, "stray"]).where == "clip.map"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
        ({"text_config": {"hidden_size": "wide"}}, "hidden_size is 'wide'; a whole number above 0"),
        ({"text_config": {"eos_token_id": [3, 4]}}, r"eos_token_id is \[3, 4\]; one id"),
        ({"vision_config": {"num_attention_heads": 5}}, "not divisible by its 5 heads"),
        ({"text_config_dict": {"hidden_size": 3}}, "hidden_size = 512 but text_config_dict says 3"),
        ({"model_cfg": {}}, "'vision_cfg' is missing|'embed_dim' is missing"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], message: str):
    base = published("clip-vit-base-patch32/config.json")
    for key, value in change.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    with pytest.raises(ConfigError, match=message):
        from_published(base)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "timm_model_name is 'convnext_base'"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool is True"),
        ("vision_cfg", {"layers": [1, 2]}, "expected a number, or four"),
        ("vision_cfg", {"layers": [1, 2, 3, 4], "patch_size": None, "image_size": 100}, "32 must divide it"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name is 'roberta-base'"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask is True"),
        (None, {"init_logit_bias": -10}, "init_logit_bias is -10"),
    ],
)
def test_what_is_not_computed_of_open_clip_is_refused(part: str | None, change: dict[str, Any], message: str):
    base = published(f"{BIG_G}/open_clip_ViT-bigG-14.json")
    base = {**base, **change} if part is None else {**base, part: {**base[part], **change}}
    with pytest.raises(ConfigError, match=message):
        from_published(base)


def test_an_unknown_key_is_named(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        from_published(published("clip-vit-base-patch32/config.json") | {"projecton_dim": 3})
    assert "'projecton_dim' is not known" in caplog.text


@pytest.mark.parametrize("name", ["clip-vit-base-patch32", "clip-vit-base-patch16", "clip-vit-large-patch14"])
def test_published_settings_of_pictures_are_read(name: str):
    config = from_published(published(f"{name}/config.json"))
    vision = FAMILY.processing(config).vision.read(PUBLISHED / name)
    assert (vision.side_px, vision.fit, vision.resample) == (224, "crop", 3)
    assert vision.normalize.mean == (0.48145466, 0.4578275, 0.40821073)
    assert vision.patch == config.vision.patch


def test_a_half_written_checkpoint_is_refused_by_names(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = clip.write(clip.oracle(), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing \(text_model.encoder.layers.1.self_attn.k_proj.bias\)"):
        load(folder)


def test_there_is_nothing_to_plan(tmp_path: Path):
    with pytest.raises(InputError, match="answers no questions"):
        Planner(clip.write(clip.oracle(), tmp_path))


def test_pictures_of_another_size_than_the_tower_s_are_refused(tmp_path: Path):
    folder = clip.write(clip.oracle(), tmp_path)
    clip.image_processor(64).save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"pictures of 64 px, but config\.json describes a tower for 32 px"):
        load(folder)


def test_a_folder_as_transformers_5_saves_its_processor(tmp_path: Path):
    """Settings of pictures lie in processor_config.json then."""
    from transformers import CLIPProcessor

    folder = tmp_path / "five"
    clip.oracle().save_pretrained(folder)
    processor = CLIPProcessor(image_processor=clip.image_processor(32), tokenizer=clip.tokenizer())
    processor.save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    assert load(folder).processor.processing.vision.side_px == 32
