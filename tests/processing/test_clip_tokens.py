"""CLIP's text: cleaned as published, never special, never cut in silence."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foveal.core.errors import ConfigError, ContextError, InputError
from foveal.processing.clip_tokens import BEGIN, END, ClipCaptions, clip_rules
from tests.helpers import clip

VOCAB, MERGES = clip.vocabulary()
CAPTIONS = ClipCaptions(clip_rules(VOCAB, MERGES), context=24)


def pieces(text: str) -> list[str]:
    names = {number: piece for piece, number in VOCAB.items()}
    return [names[i] for i in CAPTIONS.encode(text)]


def test_a_text_stands_between_begin_and_end():
    assert pieces("A photo") == [BEGIN, "a</w>", "photo</w>", END]
    assert CAPTIONS.encode("") == [VOCAB[BEGIN], VOCAB[END]]


def test_case_and_white_space_do_not_matter():
    assert CAPTIONS.encode("  A\n\tCAT  ") == CAPTIONS.encode("a cat")


def test_entities_are_undone_twice():
    assert CAPTIONS.encode("cat &amp;amp; dog &lt;3 caf&eacute;") == CAPTIONS.encode("cat & dog <3 café")
    assert "".join(pieces("&amp;amp;amp;")[1:-1]) == "&</w>amp</w>;</w>"


def test_composed_and_decomposed_letters_are_the_same():
    assert CAPTIONS.encode("e\u0301") == CAPTIONS.encode("é")


def test_digits_stand_alone():
    assert pieces("42") == [BEGIN, "4</w>", "2</w>", END]


SPECIAL = st.sampled_from(
    [BEGIN, END, END.upper(), "&lt;|endoftext|&gt;", "<|", "|>", "endoftext", "a", " ", "&amp;lt;"]
)


@given(st.lists(st.one_of(SPECIAL, st.text(max_size=4)), max_size=6).map("".join))
@example(END)
@example(f"a{END}b")
@example("&amp;lt;|startoftext|&amp;gt;")
def test_no_text_becomes_a_special_token(text: str):
    if any(0xD800 <= ord(c) < 0xE000 for c in text):
        return
    ids = CAPTIONS.encode_text(text)
    assert CAPTIONS.special_ids == {VOCAB[BEGIN], VOCAB[END]}
    assert not CAPTIONS.special_ids & set(ids)


def test_a_long_text_is_an_error_unless_it_may_be_cut():
    exactly = "a " * 22
    assert len(CAPTIONS.encode(exactly)) == 24
    with pytest.raises(ContextError, match=r"a text of 23 tokens; the text tower reads 22 .*truncate=True: 'a a a"):
        CAPTIONS.encode(exactly + "cat")
    assert CAPTIONS.encode(exactly + "cat", truncate=True) == CAPTIONS.encode(exactly)


def test_half_a_character_is_refused():
    with pytest.raises(InputError, match=r"lone surrogate \(U\+D800\) at character 2"):
        CAPTIONS.encode("a \ud800")


def broken(change: str) -> dict:
    rules = json.loads(json.dumps(clip_rules(VOCAB, MERGES)))
    if change == "byte":
        del rules["model"]["vocab"]["!</w>"]
        rules["model"]["merges"] = []
    elif change == "end":
        rules["added_tokens"] = [t for t in rules["added_tokens"] if t["content"] != END]
        del rules["model"]["vocab"][END]
    elif change == "dropout":
        rules["model"]["dropout"] = 0.1
    elif change == "kind":
        rules["model"]["type"] = "WordPiece"
    elif change == "suffix":
        rules["model"]["end_of_word_suffix"] = None
    else:
        del rules["model"]
    return rules


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("byte", r"lacks 1 of the 512 pieces .*'!</w>'"),
        ("end", r"has no '<\|endoftext\|>'"),
        ("dropout", "drops merges at random"),
        ("kind", "is WordPiece"),
        ("suffix", "word ends None"),
        ("model", "not a tokenizer.json"),
    ],
)
def test_other_vocabularies_are_refused(change: str, says: str):
    with pytest.raises(ConfigError, match=says):
        ClipCaptions(broken(change), context=24)


def test_a_vocabulary_that_builds_a_special_token_is_refused():
    rules = broken("model") | {"model": clip_rules(VOCAB, MERGES)["model"]}
    rules["model"] = json.loads(json.dumps(rules["model"]))
    rules["added_tokens"].append({"id": VOCAB["cat</w>"], "content": "cat</w>"})
    unsafe = ClipCaptions(rules, context=24)
    with pytest.raises(ConfigError, match="builds a special token from plain text"):
        unsafe.encode("a cat")


def test_a_folder_says_what_it_lacks(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"neither tokenizer\.json nor vocab\.json"):
        ClipCaptions.from_folder(tmp_path, context=24)
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ConfigError, match=r"merges\.txt:2: 'a b c' is no pair"):
        ClipCaptions.from_folder(tmp_path, context=24)


def test_files_are_given_back(tmp_path: Path):
    clip.tokenizer().save_pretrained(tmp_path)
    files = ClipCaptions.from_folder(tmp_path, context=24).files()
    assert files == {name: (tmp_path / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")}
