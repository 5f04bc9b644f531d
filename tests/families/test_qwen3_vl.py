"""Released sizes: parameters counted, tensor names compared, configurations read from the published files."""

import json
import logging
from pathlib import Path

import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.families.describe import family_of
from foveal.families.load import name_map, to_json
from foveal.families.qwen3_vl import FAMILY, from_published, to_published
from foveal.processing.processor import Processor
from tests.helpers import likeness, qwen3_vl

DATA = Path(__file__).parent.parent / "data_files"
RELEASED = ["2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B"]


def published(size):
    return json.loads((DATA / "published" / f"Qwen3-VL-{size}-Instruct" / "config.json").read_text())


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("2b", 2_127_532_032), ("4b", 4_437_815_808), ("8b", 8_767_123_696), ("32b", 33_357_390_064),
        ("30b-a3b", 31_070_754_032), ("235b-a22b", 235_670_022_896), ("tiny", 340_832), ("tiny-moe", 355_808),
    ],
)  # fmt: skip
def test_sizes_have_their_parameters(size, count):
    config = FAMILY.size(size)
    with torch.device("meta"):
        network = FAMILY.build(config)
    built = {part: sum(p.numel() for p in m.parameters()) for part, m in network.named_children()}
    assert FAMILY.parameters(config) == built
    assert sum(built.values()) == count


@pytest.mark.parametrize("size", RELEASED)
def test_published_configuration_is_the_declared_size(size, caplog):
    with caplog.at_level(logging.WARNING):
        assert from_published(published(size)) == FAMILY.size(size.lower())
    assert not caplog.records
    assert family_of(published(size)) is FAMILY


def test_tensor_names_of_the_released_8b():
    with torch.device("meta"):
        network = FAMILY.build(FAMILY.size("8b"))
    names = name_map(FAMILY)
    expected = (DATA / "qwen3_vl_8b_tensor_names.txt").read_text().split()
    assert len(expected) == 750
    assert sorted(names.published(name) for name in network.state_dict()) == sorted(expected)


def test_tensor_names_and_shapes_with_experts_are_those_of_transformers():
    """Experts are published as (expert, in, out), which transformers turns round when it reads them."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    names = name_map(FAMILY)
    values = published("30B-A3B")
    config = from_published(values)
    text = values["text_config"]
    shallow_values = {**values, "text_config": {**text, "num_hidden_layers": 2}}
    library = AutoConfig.for_model(shallow_values.pop("model_type"), **shallow_values)
    with torch.device("meta"):
        ours = {names.published(n): tuple(t.shape) for n, t in FAMILY.build(config).state_dict().items()}
        theirs = AutoModelForImageTextToText.from_config(library).state_dict()
    shallow = {n: s for n, s in ours.items() if "language_model.layers." not in n or n.split(".")[3] in ("0", "1")}
    turned = {n: (s[0], s[2], s[1]) if ".experts." in n else s for n, s in shallow.items()}
    assert turned == {n: tuple(t.shape) for n, t in theirs.items()}


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
        assert theirs.text_config.head_dim == config.language.head_dim
        assert theirs.vision_config.deepstack_visual_indexes == list(config.vision.inner)
        assert theirs.tie_word_embeddings == config.language.tied
        with caplog.at_level(logging.WARNING):
            assert from_published(theirs.to_dict()) == config
        assert not caplog.records


def changed(section, **values):
    whole = published("30B-A3B")
    return {**whole, section: {**whole[section], **values}}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("vision_config", {"hidden_act": "gelu"}, "hidden_act is 'gelu'.*computes only 'gelu_pytorch_tanh'"),
        ("vision_config", {"out_hidden_size": 3}, "out_hidden_size is 3"),
        ("vision_config", {"deepstack_visual_indexes": [3, 99]}, r"inner blocks \[3, 99\] are not different blocks"),
        ("vision_config", {"deepstack_visual_indexes": [3, 3]}, r"inner blocks \[3, 3\] are not different blocks"),
        ("vision_config", {"deepstack_visual_indexes": [5, 3]}, r"inner blocks \[5, 3\] .* in ascending order"),
        ("vision_config", {"num_position_embeddings": 2300}, "2300, which is no square"),
        ("text_config", {"attention_bias": True}, "attention_bias is True"),
        ("text_config", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("text_config", {"num_experts_per_tok": 200}, "200 of 128 experts"),
        ("text_config", {"mlp_only_layers": "none"}, "mlp_only_layers is 'none'; a list of whole numbers"),
        ("text_config", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("text_config", {"rope_scaling": {"mrope_interleaved": False}}, "mrope_interleaved is False"),
        ("text_config", {"rope_scaling": {"mrope_section": [1, 2, 3]}}, "sums to 6"),
    ],
)
def test_what_is_not_computed_is_refused(section, change, message):
    with pytest.raises(ConfigError, match=message):
        from_published(changed(section, **change))


def test_an_unknown_key_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        from_published(changed("text_config", num_expert=3))
    assert "'num_expert' is not known" in caplog.text


def test_the_outer_word_on_tying_counts():
    """transformers 5 writes true into the text section of models with experts, whatever holds."""
    assert not from_published(changed("text_config", tie_word_embeddings=True)).language.tied
    whole = changed("text_config", tie_word_embeddings=True)
    del whole["tie_word_embeddings"]
    assert from_published(whole).language.tied


def test_which_layers_have_experts():
    language = from_published(changed("text_config", mlp_only_layers=[3], decoder_sparse_step=2)).language
    assert [i for i in range(8) if language.mixed(i)] == [1, 5, 7]
    with torch.device("meta"):
        network = FAMILY.build(from_published(changed("text_config", mlp_only_layers=[3], num_hidden_layers=5)))
    built = sum(p.numel() for p in network.language.parameters())
    assert network.language.config.parameters == built


def test_published_processing_files_are_read():
    processing = FAMILY.processing(FAMILY.size("4b"))
    assert processing.vision.read(qwen3_vl.PUBLISHED) == processing.vision  # the files say what the family declares


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processing")
    qwen3_vl.write_processing(folder)
    return Processor.from_folder(folder, FAMILY.processing(FAMILY.size("tiny")), context_tokens=None)


def test_no_text_makes_a_special_token(processor):
    likeness.check_that_text_stays_text(processor)


def test_the_published_template_is_followed(processor):
    """Without a system turn of its own; what a tool says stands in a turn of the user's."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = json.loads((qwen3_vl.PUBLISHED / "chat_template.json").read_text())["chat_template"]
    program = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    turns = [("user", "a"), ("assistant", "b"), ("tool", "c"), ("tool", "d"), ("assistant", "e"), ("user", "f")]
    for first in ([], [("system", "s")]):
        for stop in range(1, len(turns) + 1):
            messages = [{"role": role, "content": words} for role, words in first + turns[:stop]]
            expected = program.render(messages=messages, add_generation_prompt=True)
            assert processor.tokenizer.decode(processor.process(messages).tokens.tolist()) == expected


def test_settings_survive_writing(processor, tmp_path):
    vision = FAMILY.processing(FAMILY.size("4b")).vision
    for name, values in vision.files().items():
        (tmp_path / name).write_text(json.dumps(values))
    assert vision.read(tmp_path) == vision
