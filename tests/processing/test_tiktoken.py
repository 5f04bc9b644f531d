"""The whole published vocabulary, and rank files that are none."""

import base64
from itertools import pairwise

import pytest

from foveal.core.errors import ConfigError
from foveal.processing.picture_chat import SPECIALS
from foveal.processing.tiktoken import from_ranks, read_tiktoken
from tests.helpers import qwen_vl

GOLDEN = qwen_vl.recorded("tokenizer_golden.json")


def lines(*tokens):
    return "".join(f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens))


BYTES = [bytes([i]) for i in range(256)]


def test_special_tokens_have_their_published_ids():
    tokenizer = qwen_vl.whole_vocabulary()
    assert tokenizer.vocab_size == GOLDEN["vocab_size"]
    names = {"eod": "<|endoftext|>", "im_start": "<|im_start|>", "im_end": "<|im_end|>", "img_pad": "<imgpad>"}
    for kind in ("img", "ref", "box", "quad"):
        names |= {f"{kind}_start": f"<{kind}>", f"{kind}_end": f"</{kind}>"}
    for key, number in GOLDEN["special_ids"].items():
        assert tokenizer.special(names.get(key.removesuffix("_id"), key)) == number


def merged(text, ranks):
    """tiktoken's rule on one piece of text: join the neighbours whose union has the lowest rank, again and again."""
    parts = [bytes([b]) for b in text]
    while len(parts) > 1:
        unions = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = min(range(len(unions)), key=unions.__getitem__)
        if unions[at] == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[p] for p in parts]


def test_merges_do_what_ranks_do():
    """All ways to merge the letters of words in which every merge can be made in several orders."""
    tokens = [*BYTES, b"ab", b"bc", b"abc", b"ca", b"abca", b"aa", b"aab", b"abab"]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    tokenizer = from_ranks(lines(*tokens), (), files={})
    for number in range(3**8):
        word = "".join("abc"[number // 3**i % 3] for i in range(8))
        assert tokenizer.encode_text(word) == merged(word.encode(), ranks), word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("YQ== 0\nYg== x\n", r"line 2 is 'Yg== x'; expected a token in base64"),
        ("YQ=\n", "line 1"),
        ("!!!! 0\n", "line 1"),
        ("", "ranks of its 0 tokens"),
        ("YQ== 0\nYg== 5\n", "ranks of its 2 tokens are not 0 to 1"),
        (lines(*BYTES, b"abc"), "token b'abc' of rank 256 is not made of two"),
        (lines(b"a", b"b"), "lacks 241 of 243 bytes"),
    ],
)
def test_what_is_no_vocabulary_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        from_ranks(text, SPECIALS, files={})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"qwen\.tiktoken cannot be read"):
        read_tiktoken(tmp_path, SPECIALS, {})
    (tmp_path / "qwen.tiktoken").write_text("YQ==\n")
    with pytest.raises(ConfigError, match=r"qwen\.tiktoken: line 1"):
        read_tiktoken(tmp_path, SPECIALS, {})


@pytest.mark.parametrize("name", SPECIALS)
def test_no_special_id_comes_out_of_text(name):
    tokenizer = qwen_vl.processor().tokenizer
    for text in (name, f"a{name}b", f" {name}\n", name * 3, name.upper(), name[:-1] + name):
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode_text(text))
