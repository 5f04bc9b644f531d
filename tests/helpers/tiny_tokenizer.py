"""A small real Qwen2-style tokenizer for tests: part of the published vocabulary, closed under merges.

`tests/data_files/tiny_tokenizer/` was written by

    python -m tests.helpers.tiny_tokenizer PATH_OF_THE_FULL_TOKENIZER_JSON

from the Qwen2.5 `tokenizer.json` (Apache-2.0). On the texts below the small vocabulary splits exactly as the
full one; elsewhere it falls back to smaller pieces, down to bytes, and so it can encode anything.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

FOLDER = Path(__file__).parent.parent / "data_files" / "tiny_tokenizer"

TEXTS = (
    "system\nYou are a helpful assistant.\nuser\nassistant\ntool\n\n\n \n\n  \n",
    "What is in this picture? Describe the image. Find every red bicycle and give its box.",
    "Picture 1: Video 2: The cat is on the left, the dog is on the right; there is no horse here.",
    "How many apples, bananas and cars are there? There are three. one two three four five.",
    "Don't you think it's what we've seen? I'm sure they'll say she'd like that.",
    "描述这张图片。左边是一只猫，右边有两个红色的苹果。请找出自行车的位置。你好，世界！有几个？",
    "(12,34),(567,890) [1, 2.5, -3] {'a': 1} <b> | im_start box_end vision_pad image_pad </s> == != // # $ %",
    "def main(x):\n    return x + 1\n\tprint('x')\r\n",
)


def subset(rules: dict[str, Any], texts: Iterable[str]) -> dict[str, Any]:
    """`rules` (a byte-level BPE `tokenizer.json`) reduced to what splitting `texts` needs.

    Every merge that is applied on the way, and with it every piece in between, is kept: merges keep their order,
    so the lowest-ranked applicable merge of a text stays the same one, and the split is unchanged.
    """
    full = Tokenizer.from_str(json.dumps({**rules, "added_tokens": []}))
    pairs = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in rules["model"]["merges"]]
    rank = {pair: i for i, pair in enumerate(pairs)}
    bytes_ = {t for t, i in rules["model"]["vocab"].items() if len(t) == 1 and i < 256}
    kept, merges = set(bytes_), set()
    for text in texts:
        for word, _ in full.pre_tokenizer.pre_tokenize_str(full.normalizer.normalize_str(text)):
            pieces = list(word)
            while True:
                ranked = [(rank[p], i) for i, p in enumerate(pairwise(pieces)) if p in rank]
                if not ranked:
                    break
                number, i = min(ranked)
                merges.add(number)
                pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
                kept.add(pieces[i])
    order = sorted(kept, key=rules["model"]["vocab"].__getitem__)
    vocabulary = {t: i for i, t in enumerate(order)}
    added = [{**t, "id": len(vocabulary) + i} for i, t in enumerate(a for a in rules["added_tokens"] if a["special"])]
    # Published order of the first fourteen; what later releases added beside them is left out.
    model = {**rules["model"], "vocab": vocabulary, "merges": [" ".join(pairs[i]) for i in sorted(merges)]}
    return {**rules, "added_tokens": added, "model": model}


def write(full: Path, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json of the small tokenizer."""
    rules = subset(json.loads(full.read_text(encoding="utf-8")), TEXTS)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rules, ensure_ascii=False, indent=0, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(re.sub(r'"\n*:', '":', text) + "\n", encoding="utf-8")
    template = json.loads((FOLDER / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(t["id"]): {f: t[f] for f in fields} for t in rules["added_tokens"]},
        "additional_special_tokens": [t["content"] for t in rules["added_tokens"][1:]],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def with_tags(folder: Path, tags: tuple[str, ...]) -> Path:
    """The small vocabulary with these as added content, as the published files have them."""
    shutil.copytree(FOLDER, folder)
    rules = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    first = 1 + max(token["id"] for token in rules["added_tokens"])
    for number, tag in enumerate(tags, first):
        rules["added_tokens"].append({**rules["added_tokens"][0], "id": number, "content": tag, "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]), FOLDER)
