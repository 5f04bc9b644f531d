"""Texts of SigLIP: the ids of the published tokenizers, and text that stays text."""

import json
import random
import struct

import pytest

from foveal.core.errors import ConfigError, ContextError, InputError
from foveal.processing.sentencepiece import read_sentencepiece
from foveal.processing.siglip_tokens import canonical, read_captions
from tests.helpers import siglip

SPIECE = (siglip.GOLDEN / "spiece.model").read_bytes()
CASES = json.loads((siglip.GOLDEN / "texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def captions():
    return read_captions(siglip.GOLDEN, context=64)


def test_recorded_texts(captions):
    assert len(CASES) == 99
    for case in CASES:
        assert captions.encode(case["text"], truncate=True) == case["ids"], case["text"]


def test_cleaning():
    assert canonical("  A Photo,\n of a\tCAT! ") == "a photo of a cat"
    assert canonical("A-B_C", lower=False) == "ABC"


def test_settings_are_read(tmp_path):
    (tmp_path / "spiece.model").write_bytes(SPIECE)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "pad_token": {"content": "<pad>"}, "padding_side": "left"})
    )
    found = read_captions(tmp_path, context=16)
    ids = found.encode("cat")
    assert ids[-1] == 1
    assert ids[:10] == [0] * 10
    assert found.encode_text("CAT") != found.encode_text("cat")


@pytest.mark.parametrize(
    "text", ["</s>", "a</s>b", "<pad><unk>", "\ufdd0</s>", "\ufdd0<unk> cat", "▁▁cat", "< / s >", "<s>", "\0</s>\0"]
)
def test_text_stays_text(captions, text, tmp_path):
    # An unknown character is the one special id that a text comes to; it says nothing.
    assert not (captions.special_ids - {2}) & set(captions.encode_text(text)), text
    siglip.gemma_tokenizer(tmp_path)
    second = read_captions(tmp_path, context=64)
    for special in ("<eos>", "<bos>", "<pad>", "<mask>"):
        assert not (second.special_ids - {3}) & set(second.encode_text(text + special + text))


def test_length(captions):
    with pytest.raises(ContextError, match=r"reads 63 and the end.*truncate=True"):
        captions.encode("a word " * 60)
    cut = captions.encode("a word " * 60, truncate=True)
    assert len(cut) == 64
    assert cut[-1] == 1
    with pytest.raises(InputError, match=r"lone surrogate \(U\+D800\) at character 1"):
        captions.encode("a\ud800")


def test_gemmas_vocabulary(tmp_path):
    """SigLIP 2, beside transformers."""
    theirs = siglip.gemma_tokenizer(tmp_path)
    ours = read_captions(tmp_path, context=64)
    rng = random.Random(0)
    letters = "abcXYZ 0189.,!?'-  ÀéßΣİ猫😀\n\t½"
    texts = ["", "A photo of the CAT", "two  apples,\n\non the left!", "ΣΑΣ İstanbul"]
    texts += [" ".join(rng.choice(siglip.WORDS) for _ in range(rng.randint(1, 30))).title() for _ in range(40)]
    texts += ["".join(rng.choice(letters) for _ in range(rng.randint(1, 50))) for _ in range(60)]
    for text in texts:
        expected = theirs([text], padding="max_length", max_length=64, truncation=True).input_ids[0]
        assert ours.encode(text, truncate=True) == expected, text
    assert ours.files().keys() == {"tokenizer.json", "tokenizer_config.json"}


def test_a_unigram_tokenizer_json(tmp_path, captions):
    """The vocabulary of SigLIP 1 in the other form of file."""
    rules = read_sentencepiece(SPIECE).rules()
    rules["model"]["vocab"] = [[name.removeprefix("\ufdd0"), score] for name, score in rules["model"]["vocab"]]
    rules["added_tokens"] = [
        {"id": n, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for n, t in enumerate(["<pad>", "</s>", "<unk>"])
    ]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    found = read_captions(tmp_path, context=64)
    for case in CASES[:60]:
        if case["text"].isascii():
            assert found.encode(case["text"], truncate=True) == case["ids"], case["text"]


def piece(text, kind=1):
    body = b"\x0a" + bytes([len(text)]) + text.encode() + b"\x15" + struct.pack("<f", -1.0) + b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(body)]) + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SPIECE[:-40000], "not a SentencePiece model"),
        (b"\x0b\x01", "not a SentencePiece model"),
        (b"hello", "not a SentencePiece model"),
        (b"", "no one piece for what is unknown"),
        (piece("<unk>", 2) + piece("<u>", 2), "no one piece for what is unknown"),
        (piece("<unk>", 2) + b"\x12\x02\x18\x02", "is a BPE model; only unigram is read"),
        (piece("<unk>", 2) + b"\x1a\x02\x28\x00", "keeps spaces as they are"),
        (piece("<unk>", 2) + b"\x1a\x04\x12\x02ab", "damaged character table"),
    ],
)
def test_damaged_files_are_named(content, message, tmp_path):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_captions(tmp_path, context=8)
    assert "spiece.model" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "is WordPiece; BPE"),
        ({"model": None}, "not a tokenizer.json"),
        ({"post_processor": {"type": "TemplateProcessing", "single": []}}, "one text with tokens around"),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {}}, {"SpecialToken": {"id": "<x>"}}],
                }
            },
            "has no '<x>'",
        ),
    ],
)
def test_other_tokenizers_are_refused(change, message, tmp_path):
    siglip.gemma_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        read_captions(tmp_path, context=8)


def test_a_special_token_that_is_no_text_is_refused(tmp_path):
    siglip.gemma_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": 1}))
    with pytest.raises(ConfigError, match="a special token is 1"):
        read_captions(tmp_path, context=8)


def test_missing_files(tmp_path):
    with pytest.raises(ConfigError, match=r"holds neither spiece\.model nor tokenizer\.json"):
        read_captions(tmp_path, context=8)
