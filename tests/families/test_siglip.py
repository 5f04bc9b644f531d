"""SigLIP: sizes, configurations, names."""

import json
import logging
from pathlib import Path

import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.families.describe import families
from foveal.families.load import name_map, to_json
from foveal.families.siglip import FAMILY, from_published, to_published
from tests.helpers import siglip

PUBLISHED = Path(__file__).parents[1] / "data_files/published"

# The first two as the published figures have them (203M, 878M); the others counted from the published sizes.
COUNTS = {
    "base-patch16-224": 203_155_970,
    "so400m-patch14-384": 877_960_498,
    "2-base-patch16-224": 375_187_970,
}


def published(name="siglip-base-patch16-224"):
    return json.loads((PUBLISHED / name / "config.json").read_text())


@pytest.mark.parametrize("size", FAMILY.sizes)
def test_every_size_has_its_parameters_and_names(size):
    config = FAMILY.size(size)
    with torch.device("meta"):
        network = FAMILY.build(config)
    built = {part: sum(p.numel() for p in m.parameters()) for part, m in network.named_children()}
    assert FAMILY.parameters(config) == {**built, "scale": 2}
    if size in COUNTS:
        assert sum(FAMILY.parameters(config).values()) == COUNTS[size]
    names = name_map(FAMILY)
    assert all(names.sources(name) for name in network.state_dict())


@pytest.mark.parametrize(
    "size", ["base-patch16-224", "so400m-patch14-384", "so400m-patch14-224", "2-giant-opt-patch16-384"]
)
def test_as_many_tensors_and_values_as_transformers(size):
    from transformers import SiglipConfig, SiglipModel

    config = FAMILY.size(size)
    stated = to_published(config)
    stated["text_config"] |= {"bos_token_id": 0, "eos_token_id": 1}
    with torch.device("meta"):
        theirs = SiglipModel(SiglipConfig(**stated))
        ours = FAMILY.build(config)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    names = name_map(FAMILY)
    written = {source for name in ours.state_dict() for source in names.sources(name)}
    assert written == {name for name, _ in theirs.named_parameters()}


@pytest.mark.parametrize("size", ["base-patch16-224", "so400m-patch14-384"])
def test_the_published_configuration(size, caplog):
    with caplog.at_level(logging.WARNING):
        assert from_published(published(f"siglip-{size}")) == FAMILY.size(size)
    assert not caplog.records


def test_the_published_preprocessor():
    vision = FAMILY.processing(FAMILY.size("base-patch16-224")).vision
    assert vision.sized(64).read(PUBLISHED / "siglip-base-patch16-224") == vision


@pytest.mark.parametrize("size", FAMILY.sizes)
def test_writing_and_reading_keep_the_configuration(size, caplog):
    config = FAMILY.size(size)
    with caplog.at_level(logging.WARNING):
        assert from_published(json.loads(to_json(to_published(config)))) == config
    assert not caplog.records


def test_what_transformers_writes_is_read(tmp_path, caplog):
    siglip.write(siglip.oracle(), tmp_path)
    with caplog.at_level(logging.WARNING):
        config = from_published(json.loads((tmp_path / "config.json").read_text()))
    assert not caplog.records
    assert (config.text.width, config.text.embed, config.vision.side) == (36, 48, 6)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_config", {"vision_use_head": False}, "vision_use_head is False"),
        ("vision_config", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("text_config", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("text_config", {"projection_size": 100}, "texts become vectors of 100 and pictures of 768"),
        ("text_config", {"vocab_size": -1}, "vocab_size is -1"),
        ("text_config", {"num_attention_heads": 7}, "not divisible by its 7 heads"),
    ],
)
def test_what_is_not_computed_is_refused(part, change, message):
    with pytest.raises(ConfigError, match=message):
        from_published(published() | {part: published()[part] | change})


def test_an_unknown_key_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        from_published(published() | {"text_config": {"hiden_size": 3}})
    assert "'hiden_size' is not known" in caplog.text


def test_the_family_is_found():
    assert families()["siglip"] is FAMILY
