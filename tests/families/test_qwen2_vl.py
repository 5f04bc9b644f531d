"""Released sizes: parameters counted, tensor names compared, configurations read from the published files."""

import json
import logging
from pathlib import Path

import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.families.describe import families, family_of
from foveal.families.load import random_network, to_json
from foveal.families.qwen2_vl import FAMILY, from_published, to_published
from foveal.weights.names import NameMap

DATA = Path(__file__).parent.parent / "data_files"


def published(size):
    return json.loads((DATA / "published" / f"Qwen2-VL-{size}-Instruct" / "config.json").read_text())


def count(config):
    with torch.device("meta"):
        return sum(p.numel() for p in FAMILY.build(config).parameters())


@pytest.mark.parametrize(
    ("size", "parameters"), [("2b", 2_208_985_600), ("7b", 8_291_375_616), ("72b", 73_405_560_320)]
)
def test_released_sizes_have_their_parameters(size, parameters):
    assert count(FAMILY.size(size)) == parameters


@pytest.mark.parametrize("size", ["2B", "7B"])
def test_published_configuration_is_the_declared_size(size, caplog):
    with caplog.at_level(logging.WARNING):
        assert from_published(published(size)) == FAMILY.size(size.lower())
    assert not caplog.records


def test_tensor_names_of_the_released_7b():
    with torch.device("meta"):
        network = FAMILY.build(FAMILY.size("7b"))
    names = NameMap.parse(FAMILY.map_text(), where="qwen2_vl.map")
    expected = (DATA / "qwen2_vl_7b_tensor_names.txt").read_text().split()
    assert sorted(names.published(name) for name in network.state_dict()) == sorted(expected)


@pytest.mark.parametrize("size", sorted(FAMILY.sizes))
def test_writing_and_reading_keep_the_configuration(size, caplog):
    config = FAMILY.size(size)
    with caplog.at_level(logging.WARNING):
        assert from_published(json.loads(json.dumps(to_published(config)))) == config
    assert not caplog.records


def test_transformers_reads_what_we_write(tmp_path):
    from transformers import AutoConfig

    for size, config in FAMILY.sizes.items():
        (tmp_path / "config.json").write_text(to_json(to_published(config)))
        theirs = AutoConfig.from_pretrained(tmp_path)
        assert theirs.text_config.hidden_size == config.language.width, size
        assert theirs.text_config.num_key_value_heads == config.language.kv_heads
        assert theirs.vision_config.depth == config.vision.depth
        assert theirs.tie_word_embeddings == config.language.tied
        assert from_published(theirs.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*computes only 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"hidden_size": "big"}, "hidden_size is 'big'; a whole number above 0"),
        ({"vision_config": None}, "'vision_config' is missing"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "type is 'yarn'"),
        ({"num_key_value_heads": 5}, "cannot share 5 key heads"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "sums to 6"),
    ],
)
def test_what_is_not_computed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_published(published("2B") | change)


def test_an_unknown_key_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        from_published(published("2B") | {"hiden_size": 3})
    assert "'hiden_size' is not known" in caplog.text


def test_family_is_found_by_model_type():
    assert families()["qwen2_vl"] is FAMILY
    assert family_of({"model_type": "qwen2_vl"}) is FAMILY
    with pytest.raises(ConfigError, match="unknown model_type 'qwen2vl'; did you mean 'qwen2_vl'"):
        family_of({"model_type": "qwen2vl"})
    with pytest.raises(ConfigError, match="no 'model_type'"):
        family_of({})


def test_random_networks_repeat():
    one = random_network(FAMILY, FAMILY.size("tiny"), seed=3)
    two = random_network(FAMILY, FAMILY.size("tiny"), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_unknown_size_names_the_known_ones():
    with pytest.raises(ConfigError, match="no size '3b'"):
        FAMILY.size("3b")
