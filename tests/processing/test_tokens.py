import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.errors import ConfigError, InputError
from foveal.processing.segments import MediumSegment, SpecialSegment, TextSegment
from foveal.processing.tokens import Tokenizer
from tests.helpers import published
from tests.helpers.tiny_tokenizer import FOLDER, TEXTS, subset, with_tags

TINY = Tokenizer.from_file(FOLDER / "tokenizer.json")
NAMES = TINY.special_names
ORACLE = published.tokenizer()
TEXT = st.text(st.sampled_from("ab xyz\n\r\t  'st 123é你好，🎉👩‍👧ñ.,;!<|>_()[]e\u0301"), max_size=60) | st.text(
    max_size=30
)


def rules() -> dict:
    return json.loads((FOLDER / "tokenizer.json").read_text())


@given(TEXT.filter(lambda t: not any(name in t for name in NAMES)))
@settings(max_examples=500, deadline=None)
def test_plain_text_has_the_ids_of_transformers(text):
    assert TINY.encode_text(text) == published.ids(text)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_text_comes_back_in_its_normal_form(text):
    import unicodedata

    if any(0xD800 <= ord(c) < 0xE000 for c in text):
        with pytest.raises(InputError, match="surrogate"):
            TINY.encode_text(text)
    else:
        assert TINY.decode(TINY.encode_text(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("name", TINY.special_names)
def test_no_special_id_comes_out_of_text(name):
    for text in (name, name * 3, f"a{name}b", f" {name} ", f"\n{name}", name[:-1] + name):
        ids = TINY.encode_text(text)
        assert TINY.special_ids.isdisjoint(ids)
        assert TINY.decode(ids) == text


@given(st.lists(st.integers(0, TINY.vocab_size + 40), max_size=30))
@settings(max_examples=500, deadline=None)
def test_decode_as_transformers_and_piece_by_piece(ids):
    assert TINY.decode(ids) == ORACLE.decode(ids)
    assert TINY.decode(ids, skip_special=True) == ORACLE.decode(ids, skip_special_tokens=True)
    stream = TINY.stream()
    pieces = [stream.push([i]) for i in ids] + [stream.finish()]
    assert "".join(pieces) == TINY.decode(ids)


def test_stream_never_shows_half_a_character():
    stream = TINY.stream()
    ids = [TINY._encoder.token_to_id(c) for c in "ðŁİī"]  # the four bytes of a party popper
    assert [stream.push([i]) for i in ids] == ["", "", "", "🎉"]
    assert stream.finish() == ""
    stream.push(ids[:2])
    assert stream.finish() == "\ufffd"


def test_neighbouring_texts_are_joined_and_a_token_belongs_to_where_it_begins():
    parts = [
        TextSegment(text="user\n"),
        TextSegment(text=""),
        TextSegment(text="\nHello"),
        SpecialSegment(name="<|im_end|>"),
    ]
    encoded = TINY.encode_segments(parts)
    assert encoded.ids == published.ids("user\n\nHello<|im_end|>")
    tokens = [TINY.decode([i]) for i in encoded.ids]
    assert tokens[1] == "\n\n", "the line breaks of both texts are one token"
    assert encoded.owners[:2] == [0, 0]
    assert set(encoded.owners[2:-1]) == {2}
    assert encoded.owners[-1] == 3


def test_a_medium_becomes_as_many_pads_as_it_takes():
    pad = TINY.special("<|image_pad|>")
    slots = [MediumSegment(medium=1, pad="<|image_pad|>"), MediumSegment(medium=0, pad="<|image_pad|>")]
    encoded = TINY.encode_segments(slots, [2, 3])
    assert encoded.ids == [pad] * 5
    assert encoded.owners == [0, 0, 0, 1, 1]


def test_segments_of_an_answer_tell_tags_from_text_that_spells_them():
    spelt = TINY.encode_text("<|box_start|>")
    ids = np.array([*spelt, TINY.special("<|box_start|>"), 5])
    assert TINY.decode_segments(ids) == [
        TextSegment(text="<|box_start|>"),
        SpecialSegment(name="<|box_start|>"),
        TextSegment(text=TINY.decode([5])),
    ]


def test_added_tokens_that_are_content_are_special_on_the_way_in_and_text_on_the_way_out():
    extra = {"id": TINY.vocab_size, "content": "<tool_call>", "special": False}
    tokenizer = Tokenizer((FOLDER / "tokenizer.json").read_text(), added=[extra])
    assert tokenizer.special("<tool_call>") == TINY.vocab_size
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode_text("<tool_call>"))
    ids = [TINY.vocab_size, tokenizer.special("<|im_end|>")]
    assert tokenizer.decode(ids, skip_special=True) == "<tool_call>"
    assert tokenizer.decode_segments(ids)[0] == TextSegment(text="<tool_call>")
    assert tokenizer.split_answer("<tool_call><|im_end|>")[0] == TextSegment(text="<tool_call>")


def test_unknown_special_token_names_its_neighbours():
    with pytest.raises(ConfigError, match=r"did you mean '<\|image_pad\|>'"):
        TINY.special("<|img_pad|>")


def spoilt(**changes):
    changed = rules()
    for key, value in changes.items():
        changed[key] = value(changed[key])
    return json.dumps(changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a tokenizer.json"),
        ("[]", "not a tokenizer.json"),
        (spoilt(model=lambda m: {**m, "type": "WordPiece"}), "byte-level BPE"),
        (spoilt(pre_tokenizer=lambda _: None, decoder=lambda _: None), "byte-level BPE"),
        (spoilt(model=lambda m: {**m, "vocab": {k: v for k, v in m["vocab"].items() if k != "!"}}), "0x21"),
        (spoilt(model=lambda m: {**m, "vocab": {**m["vocab"], "a b": 999}}), "stand for no byte"),
        (spoilt(model=lambda m: {**m, "merges": [1]}), "not a tokenizer.json"),
        (spoilt(normalizer=lambda _: {"type": "None such"}), "not a tokenizer.json"),
        (spoilt(model=lambda m: {**m, "dropout": 0.1}), "at random"),
        (spoilt(added_tokens=lambda a: [{**a[0], "rstrip": True}, *a[1:]]), "rstrip on"),
        (spoilt(added_tokens=lambda a: [{"id": 3}]), "not a tokenizer.json"),
        (spoilt(added_tokens=lambda a: [{**a[0], "id": 3}, *a[1:]]), "plain text"),
        (spoilt(added_tokens=lambda a: [{**a[0], "id": a[1]["id"]}, *a[1:]]), "share one id"),
    ],
)
def test_files_that_cannot_be_used_are_refused(content, message):
    with pytest.raises(ConfigError, match=message):
        Tokenizer(content)


def test_merges_that_would_build_a_special_token_are_refused():
    changed = rules()
    number = changed["model"]["vocab"]["user"]
    changed["added_tokens"].append({**changed["added_tokens"][0], "content": "user", "id": number})
    tokenizer = Tokenizer(json.dumps(changed))
    with pytest.raises(ConfigError, match="from plain text"):
        tokenizer.encode_text("user")


def test_two_files_that_disagree_are_refused():
    with pytest.raises(ConfigError, match="has the ids"):
        Tokenizer((FOLDER / "tokenizer.json").read_text(), added=[{"id": 9999, "content": "<|im_end|>"}])


def test_a_text_that_is_alone_is_joined_with_nothing():
    words = ["system", "\n", "You", " are"]
    for at in range(4):
        segments = [TextSegment(text=w, alone=i == at) for i, w in enumerate(words)]
        encoded = TINY.encode_segments(segments)
        parts = ["".join(words[:at]), words[at], "".join(words[at + 1 :])]
        assert encoded.ids == [i for part in parts for i in TINY.encode_text(part)]
        assert set(encoded.owners) == {0, 1, 2, 3}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_subset_is_closed_and_splits_like_the_whole():
    smaller = subset(rules(), TEXTS[1:3])
    vocabulary = smaller["model"]["vocab"]
    assert len(vocabulary) < len(rules()["model"]["vocab"])
    for merge in smaller["model"]["merges"]:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= vocabulary.keys()
    small = Tokenizer(json.dumps(smaller))
    for text in TEXTS[1:3]:
        assert [small.decode([i]) for i in small.encode_text(text)] == [
            TINY.decode([i]) for i in TINY.encode_text(text)
        ]


def deepseek_rules() -> dict:
    """A vocabulary as DeepSeek publishes it: the bytes that UTF-8 never uses are letters added at the end."""
    from pathlib import Path

    path = Path(__file__).parents[1] / "golden/deepseek_vl/tokenizer.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    never = "ÀÁõö÷øùúûüýþÿ"
    vocabulary = {t: i for t, i in made["model"]["vocab"].items() if t not in never}
    order = {t: i for i, t in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}
    made["model"]["vocab"] = order
    names = [t["content"] for t in made["added_tokens"] if t["content"] not in order]
    for token in made["added_tokens"]:
        token["id"] = order.get(token["content"], len(order))
    plain = {"special": False, "lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
    made["added_tokens"] += [{"id": len(order) + len(names) + i, "content": c, **plain} for i, c in enumerate(never)]
    return made


@given(st.text(st.sampled_from("aü öß þ.é÷1\n你"), max_size=30))
@settings(max_examples=200, deadline=None)
def test_letters_of_unused_bytes_are_text(text):
    import tokenizers

    content = json.dumps(deepseek_rules())
    ours, theirs = Tokenizer(content), tokenizers.Tokenizer.from_str(content)
    ids = ours.encode_text(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text
    assert ours.decode(ids, skip_special=True) == text
    assert not set(ids) & ours.special_ids
    assert "ü" not in ours.special_names
    assert ours.vocab_size == theirs.get_vocab_size()


def test_a_tag_is_one_token_where_the_vocabulary_has_it_as_content(tmp_path):
    """A tag that the vocabulary lacks is text, and so is the name of a control token, whoever calls it a tag."""
    own = Tokenizer.from_file(with_tags(tmp_path / "vocabulary", ("<tool_call>",)) / "tokenizer.json")
    plain = Tokenizer.from_file(FOLDER / "tokenizer.json")
    (tag,) = own.content_ids
    assert own.token_bytes(tag) == b"<tool_call>" and plain.content_ids == frozenset()
    before, behind = TextSegment(text="a\n"), TextSegment(text="\nb")
    found = own.encode_segments([before, TextSegment(text="<tool_call>", tag=True), behind])
    assert found.ids == [*own.encode_text("a\n"), tag, *own.encode_text("\nb")]
    assert found.owners.count(1) == 1
    whole = own.encode_text("a\n<tool_call>\nb")
    assert tag not in whole
    assert plain.encode_segments([before, TextSegment(text="<tool_call>", tag=True), behind]).ids == whole
    assert own.encode_segments([before, TextSegment(text="<tool_call>"), behind]).ids == whole
    control = own.encode_segments([TextSegment(text="<|im_end|>", tag=True)]).ids
    assert control == own.encode_text("<|im_end|>")
