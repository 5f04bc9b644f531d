"""Released sizes: parameters counted, tensor names compared, configurations read from the published files."""

import json
import logging
from pathlib import Path

import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.families.describe import family_of
from foveal.families.load import to_json
from foveal.families.qwen2_5_vl import FAMILY, from_published, to_published
from foveal.processing.processor import Processor
from foveal.weights.names import NameMap
from tests.helpers import likeness
from tests.helpers.tiny_tokenizer import FOLDER

DATA = Path(__file__).parent.parent / "data_files"


def published(size):
    return json.loads((DATA / "published" / f"Qwen2.5-VL-{size}-Instruct" / "config.json").read_text())


@pytest.mark.parametrize(
    ("size", "count"),
    [("3b", 3_754_622_976), ("7b", 8_292_166_656), ("32b", 33_452_718_336), ("72b", 73_410_777_344), ("tiny", 264_416)],
)
def test_sizes_have_their_parameters(size, count):
    config = FAMILY.size(size)
    with torch.device("meta"):
        network = FAMILY.build(config)
    built = {part: sum(p.numel() for p in m.parameters()) for part, m in network.named_children()}
    assert FAMILY.parameters(config) == built
    assert sum(built.values()) == count


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_published_configuration_is_the_declared_size(size, caplog):
    with caplog.at_level(logging.WARNING):
        assert from_published(published(size)) == FAMILY.size(size.lower())
    assert not caplog.records
    assert family_of(published(size)) is FAMILY


def test_tensor_names_of_the_released_7b():
    with torch.device("meta"):
        network = FAMILY.build(FAMILY.size("7b"))
    names = NameMap.parse(FAMILY.map_text(), where="qwen2_5_vl.map")
    expected = (DATA / "qwen2_5_vl_7b_tensor_names.txt").read_text().split()
    assert len(expected) == 729
    assert sorted(names.published(name) for name in network.state_dict()) == sorted(expected)


@pytest.mark.parametrize("size", sorted(FAMILY.sizes))
def test_writing_and_reading_keep_the_configuration(size, caplog):
    config = FAMILY.size(size)
    with caplog.at_level(logging.WARNING):
        assert from_published(json.loads(json.dumps(to_published(config)))) == config
    assert not caplog.records


def test_transformers_reads_what_we_write(tmp_path, caplog):
    from transformers import AutoConfig

    for size, config in FAMILY.sizes.items():
        (tmp_path / "config.json").write_text(to_json(to_published(config)))
        theirs = AutoConfig.from_pretrained(tmp_path)
        assert theirs.text_config.hidden_size == config.language.width, size
        assert theirs.vision_config.fullatt_block_indexes == list(config.vision.full)
        assert theirs.vision_config.tokens_per_second == config.tokens_per_second
        assert theirs.tie_word_embeddings == config.language.tied
        with caplog.at_level(logging.WARNING):
            assert from_published(theirs.to_dict()) == config
        assert not caplog.records


def change(values, **vision):
    return {**values, "vision_config": {**values["vision_config"], **vision}}


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'.*computes only 'silu'"),
        ({"out_hidden_size": 3}, "out_hidden_size is 3"),
        ({"window_size": 20}, "a window of 20 px is smaller than a merged token"),
        ({"window_size": "all"}, "window_size is 'all'; a whole number"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"hidden_size": 1288}, "gives no head size divisible by 4"),
        ({"fullatt_block_indexes": "all"}, "fullatt_block_indexes is 'all'; a list of whole numbers"),
    ],
)
def test_what_is_not_computed_is_refused(vision, message):
    with pytest.raises(ConfigError, match=message):
        from_published(change(published("3B"), **vision))


def test_an_unknown_key_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        from_published(change(published("3B"), windowsize=3))
    assert "'windowsize' is not known" in caplog.text


def test_a_missing_pace_is_that_of_the_library():
    values = published("3B")
    del values["vision_config"]["tokens_per_second"]
    assert from_published(values).tokens_per_second == 4


def test_published_processing_files_are_read():
    from foveal.processing.json_boxes import JsonBoxes

    processing = FAMILY.processing(FAMILY.size("7b"))
    vision = processing.vision.read(DATA / "published" / "Qwen2.5-VL-7B-Instruct")
    assert vision == processing.vision  # the file says what the family declares
    assert isinstance(processing.boxes, JsonBoxes)
    template = json.loads((DATA / "published" / "Qwen2.5-VL-7B-Instruct" / "chat_template.json").read_text())
    own = json.loads((FOLDER / "chat_template.json").read_text())
    assert template == own  # so that what is tested of Qwen2-VL's template holds


def test_no_text_makes_a_special_token():
    processor = Processor.from_folder(FOLDER, FAMILY.processing(FAMILY.size("tiny")), context_tokens=None)
    likeness.check_that_text_stays_text(processor)
