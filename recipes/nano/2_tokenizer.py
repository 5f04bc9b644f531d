"""A small vocabulary for nano, cut from Qwen's by use and closed under merges.

Command:  python recipes/nano/2_tokenizer.py
Result:   build/nano/tokenizer.json. Any text can still be encoded: all 256 bytes are kept. What nano is asked
          with and answers with gives the same pieces as in the full vocabulary; other text gives more pieces.
"""

import itertools
import json
from pathlib import Path

from common import BUILD

from foveal.data.questions import vocabulary_texts
from foveal.data.sprites import read_names

SOURCE = BUILD / "packages" / "tokenizer" / "models" / "tokenizer.json"
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""The special tokens of Qwen2-VL's published tokenizer, in the order of their ids."""


def used_tokens(rules: dict, texts: list[str]) -> set[str]:
    """All pieces that merging passes through on the way to the tokens of `texts`."""
    from tokenizers import Tokenizer

    full = Tokenizer.from_str(json.dumps(rules))
    ranks = {pair if isinstance(pair, str) else " ".join(pair): i for i, pair in enumerate(rules["model"]["merges"])}
    used: set[str] = set()
    words = {w for t in texts for w, _ in full.pre_tokenizer.pre_tokenize_str(t)}
    for word in words:
        pieces = list(word)
        used.update(pieces)
        while True:
            pairs = [(ranks.get(f"{a} {b}"), i) for i, (a, b) in enumerate(itertools.pairwise(pieces))]
            known = [p for p in pairs if p[0] is not None]
            if not known:
                break
            at = min(known)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            used.add(pieces[at])
    return used


def main() -> None:
    rules = json.loads(SOURCE.read_text(encoding="utf-8"))
    plurals = {n.name: n.plural for n in read_names()}
    texts = vocabulary_texts(plurals)
    used = used_tokens(rules, texts)
    old = rules["model"]["vocab"]
    pieces = sorted((p for p in old if len(p) == 1 or p in used), key=old.__getitem__)
    pieces = [p for p in pieces if old[p] < 256 or p in used]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for pair in rules["model"]["merges"]:
        a, b = pair.split(" ") if isinstance(pair, str) else pair
        if a in vocabulary and b in vocabulary and a + b in vocabulary:
            merges.append(f"{a} {b}")
    rules["model"]["vocab"], rules["model"]["merges"] = vocabulary, merges
    like = rules["added_tokens"][0]
    rules["added_tokens"] = [
        {**like, "id": len(vocabulary) + i, "content": name, "special": True} for i, name in enumerate(SPECIAL)
    ]
    out = BUILD / "tokenizer.json"
    out.write_text(json.dumps(rules, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    from tokenizers import Tokenizer

    small, full = Tokenizer.from_file(str(out)), Tokenizer.from_file(str(SOURCE))
    for text in texts:
        if small.encode(text).tokens != full.encode(text).tokens:
            raise SystemExit(f"{text!r} is split in another way than in the full vocabulary.")
    print(f"{len(vocabulary)} pieces, {len(merges)} merges, {Path(out).stat().st_size} bytes")


if __name__ == "__main__":
    main()
