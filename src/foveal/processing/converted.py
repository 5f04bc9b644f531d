"""Tokenizer files of a model whose text begins with a token, as transformers opens them; for `foveal convert`."""

import json

from foveal.processing.tokens import Tokenizer


def tokenizer_files(
    tokenizer: Tokenizer, *, begin: str, end: str, image: str, template: str, context_tokens: int | None
) -> dict[str, str]:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, by name.

    Tokens that the source's processor would have added on the way are in the vocabulary, and it puts `begin` before
    every text by itself, whatever class opens it.
    """
    rules = json.loads(tokenizer.content)
    have = {token["content"] for token in rules["added_tokens"]}
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    for token in tokenizer.added:
        if token["content"] not in have:
            have.add(token["content"])
            rules["added_tokens"].append({"id": token["id"], **{f: token.get(f, False) for f in fields}})
    first = {"SpecialToken": {"id": begin, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    rules["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"SpecialToken": {"id": begin, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {begin: {"id": begin, "ids": [tokenizer.special(begin)], "tokens": [begin]}},
    }
    added = {str(t["id"]): {f: t.get(f, False) for f in fields} for t in rules["added_tokens"]}
    settings = {
        "added_tokens_decoder": added,
        "bos_token": begin,
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "extra_special_tokens": {"image_token": image},
        "image_token": image,
        "model_max_length": context_tokens,
        "pad_token": end,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if context_tokens is None:
        del settings["model_max_length"]
    return {
        "tokenizer.json": json.dumps(rules, ensure_ascii=False, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2) + "\n",
        "chat_template.jinja": template,
    }
