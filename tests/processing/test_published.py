import json
import shutil

import pytest

from foveal.core.errors import ConfigError
from foveal.processing.chat import ChatML
from foveal.processing.published import read_folder, read_tokenizer
from foveal.processing.resize import PatchGrid
from foveal.processing.template import TemplateChat
from foveal.processing.video import Frames
from tests.helpers import published
from tests.helpers.processing import processor
from tests.helpers.tiny_tokenizer import FOLDER


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "model")
    return tmp_path / "model"


def change(folder, name, **changes):
    path = folder / name
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}))


def read(folder):
    return read_folder(folder)


def test_the_published_settings(folder):
    found = read(folder)
    vision = processor(folder).processing.vision
    assert vision.resize == PatchGrid(min_px=3136, max_px=12845056)
    assert vision.normalize.mean == (0.48145466, 0.4578275, 0.40821073)
    assert vision.video == Frames()
    assert found.template == published.template()
    assert found.variables["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("key", ["add_bos_token", "add_prefix_space", "split_special_tokens"])
def test_tokenizer_settings_that_are_not_supported(folder, key):
    change(folder, "tokenizer_config.json", **{key: True})
    with pytest.raises(ConfigError, match=f"{key}=True is not supported"):
        read(folder)


def test_a_family_may_allow_a_setting_that_its_chat_format_does(folder):
    change(folder, "tokenizer_config.json", add_bos_token=True)
    assert read_tokenizer(folder, allow=("add_bos_token",)).vocab_size == read(FOLDER).tokenizer.vocab_size
    change(folder, "tokenizer_config.json", add_eos_token=True)
    with pytest.raises(ConfigError, match="add_eos_token=True is not supported"):
        read_tokenizer(folder, allow=("add_bos_token",))


def test_needed_tokens_get_the_next_free_ids(folder):
    free = read(folder).tokenizer.vocab_size
    found = read_tokenizer(folder, needed=("<image>", "<|im_end|>", "<|ref|>"))
    assert [found.special(n) for n in ("<image>", "<|ref|>")] == [free, free + 1]
    assert found.special("<|im_end|>") == read(folder).tokenizer.special("<|im_end|>")
    assert free not in found.encode_text("<image>")


def test_added_tokens_of_either_file_count(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    number = read(folder).tokenizer.vocab_size
    settings["added_tokens_decoder"][str(number)] = {"content": "<extra>", "special": True}
    change(folder, "tokenizer_config.json", **settings)
    assert read(folder).tokenizer.special("<extra>") == number


@pytest.mark.parametrize("value", [[1], {"x": {"content": "a"}}, {"9": {}}, {"9": 3}])
def test_damaged_lists_of_added_tokens_are_named(folder, value):
    change(folder, "tokenizer_config.json", added_tokens_decoder=value)
    with pytest.raises(ConfigError, match="added_tokens_decoder cannot be read"):
        read(folder)


def test_where_the_template_comes_from(folder):
    (folder / "chat_template.jinja").write_text("{{ 'jinja' }}")
    assert read(folder).template == "{{ 'jinja' }}"
    (folder / "chat_template.jinja").unlink()
    assert read(folder).template == published.template()
    (folder / "chat_template.json").unlink()
    change(folder, "tokenizer_config.json", chat_template="{{ 'config' }}")
    assert read(folder).template == "{{ 'config' }}"
    change(
        folder,
        "tokenizer_config.json",
        chat_template=[{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}],
    )
    assert read(folder).template == "d"
    change(folder, "tokenizer_config.json", chat_template=3)
    with pytest.raises(ConfigError, match="is a int, expected text"):
        read(folder)
    change(folder, "tokenizer_config.json", chat_template=None)
    assert read(folder).template is None
    assert isinstance(processor(folder).chat, ChatML)


def test_a_checkpoint_with_another_template_is_rendered_by_it(folder):
    template = published.template().replace("You are a helpful assistant.", "You see.")
    (folder / "chat_template.jinja").write_text(template)
    other = processor(folder)
    assert isinstance(other.chat, TemplateChat)
    text = other.tokenizer.decode(other.process("<|im_end|>").tokens)
    assert (
        text
        == "<|im_start|>system\nYou see.<|im_end|>\n<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    other.save(folder.parent / "copy")
    assert (folder.parent / "copy" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=name):
        processor(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "preprocessor_config.json", "tokenizer_config.json", "chat_template.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_files_are_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        processor(folder)


def test_a_family_may_begin_texts_itself_and_need_further_tokens(tmp_path):
    shutil.copy(FOLDER / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    with pytest.raises(ConfigError, match="add_bos_token=True is not supported"):
        read_tokenizer(tmp_path)
    plain = read_tokenizer(tmp_path, allow=("add_bos_token",))
    more = read_tokenizer(tmp_path, allow=("add_bos_token",), needed=("<one>", "<|im_end|>", "<two>"))
    assert more.special("<|im_end|>") == plain.special("<|im_end|>")
    assert [more.special(n) for n in ("<one>", "<two>")] == [plain.vocab_size, plain.vocab_size + 1]
    assert more.special_ids - plain.special_ids == {plain.vocab_size, plain.vocab_size + 1}
