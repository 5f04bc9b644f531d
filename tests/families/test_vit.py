"""ViT: sizes, configurations, names."""

import json
import logging
from pathlib import Path

import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.families.describe import families
from foveal.families.load import name_map, to_json
from foveal.families.vit import FAMILY, from_published, to_published
from tests.helpers import vit

PUBLISHED = Path(__file__).parents[1] / "data_files/published/vit-base-patch16-224"

# Counted from the published sizes; the first is also in the publisher's figures (86.6M).
COUNTS = {
    "base-patch16-224": 86_567_656,
    "base-patch16-384": 86_859_496,
    "base-patch32-384": 88_297_192,
    "large-patch16-224": 304_326_632,
    "large-patch16-384": 304_715_752,
    "large-patch32-384": 306_632_680,
    "base-patch16-224-in21k": 86_389_248,
    "base-patch32-224-in21k": 88_045_824,
    "large-patch16-224-in21k": 304_351_232,
    "large-patch32-224-in21k": 306_560_000,
    "huge-patch14-224-in21k": 632_404_480,
}


def published():
    return json.loads((PUBLISHED / "config.json").read_text())


@pytest.mark.parametrize("size", FAMILY.sizes)
def test_every_size_has_its_parameters_and_names(size):
    config = FAMILY.size(size)
    with torch.device("meta"):
        network = FAMILY.build(config)
    built = {part: sum(p.numel() for p in m.parameters()) for part, m in network.named_children()}
    assert FAMILY.parameters(config) == built
    if size != "tiny":
        assert sum(built.values()) == COUNTS[size]
    names = name_map(FAMILY, FAMILY.layout(config))
    assert all(names.sources(name) for name in network.state_dict())


@pytest.mark.parametrize("size", ["base-patch16-224", "huge-patch14-224-in21k"])
def test_tensors_are_those_of_transformers(size):
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = FAMILY.size(size)
    with torch.device("meta"):
        theirs = (ViTForImageClassification if config.labels else ViTModel)(ViTConfig(**to_published(config)))
        ours = FAMILY.build(config)
    names = name_map(FAMILY, FAMILY.layout(config))
    written = {source for name in ours.state_dict() for source in names.sources(name)}
    assert sum(p.numel() for p in theirs.parameters()) == COUNTS[size]
    assert len(written) == len(theirs.state_dict())


def test_the_published_configuration(caplog):
    with caplog.at_level(logging.WARNING):
        config = from_published(published())
    assert not caplog.records
    released = FAMILY.size("base-patch16-224")
    assert (config.vision, config.image_px, len(config.labels)) == (released.vision, 224, 1000)
    assert config.labels[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert FAMILY.processing(config).vision.read(PUBLISHED).resample == 2


@pytest.mark.parametrize("size", FAMILY.sizes)
def test_writing_and_reading_keep_the_configuration(size, caplog):
    config = FAMILY.size(size)
    with caplog.at_level(logging.WARNING):
        assert from_published(json.loads(to_json(to_published(config)))) == config
    assert not caplog.records


@pytest.mark.parametrize("bare", [False, True])
def test_what_transformers_writes_is_read(bare, tmp_path, caplog):
    vit.write(vit.oracle(bare=bare), tmp_path)
    with caplog.at_level(logging.WARNING):
        config = from_published(json.loads((tmp_path / "config.json").read_text()))
    assert not caplog.records
    assert config.labels == (() if bare else vit.LABELS)


def test_labels_without_names():
    bare = {k: v for k, v in published().items() if k not in ("id2label", "label2id")}
    assert from_published(bare | {"num_labels": 3}).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert len(from_published(bare).labels) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["ViTForMaskedImageModeling"]}, "computes ViTForImageClassification and ViTModel"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'.*'gelu'"),
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"id2label": {"0": "a", "2": "b"}}, "has 2 names, which are not numbered from 0 on"),
        ({"id2label": "cats"}, "id2label is 'cats'; an object"),
        ({"num_labels": 3}, "num_labels says otherwise"),
        ({"image_size": [224, 224]}, r"image_size is \[224, 224\]; a whole number"),
        ({"num_attention_heads": 7}, "not divisible by its 7 heads"),
    ],
)
def test_what_is_not_computed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_published(published() | change)


def test_an_unknown_key_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        from_published(published() | {"hiden_size": 3})
    assert "'hiden_size' is not known" in caplog.text


def test_the_family_is_found():
    assert families()["vit"] is FAMILY
