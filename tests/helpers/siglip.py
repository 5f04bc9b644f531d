"""Tiny random SigLIP checkpoints written by transformers through real files."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

GOLDEN = Path(__file__).parents[1] / "golden/siglip"

WORDS = "a photo of the cat dog street red bicycle two apples left right in on and".split()


def oracle(*, seed: int = 0, std: float = 0.15, text: dict[str, Any] | None = None, **vision: Any) -> Any:
    """A random `SiglipModel` whose every parameter is random, norms, scale and offset too."""
    from transformers import SiglipConfig, SiglipModel

    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    said = {
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 68,
        "vocab_size": 600,
        "max_position_embeddings": 64,
        "projection_size": 48,
    }
    seen = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 100,
        "image_size": 48,
        "patch_size": 8,
    }
    config = SiglipConfig(text_config=ids | said | (text or {}), vision_config=seen | vision)
    torch.manual_seed(seed)
    model = SiglipModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * std
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
            if name.startswith("logit_"):
                parameter.copy_(torch.tensor([1.2 if name == "logit_scale" else -0.7]))
    return model


def preprocessor(side: int) -> dict[str, Any]:
    """preprocessor_config.json as published for another side."""
    half = [0.5, 0.5, 0.5]
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": half,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": half,
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }


def write(model: Any, folder: Path) -> Path:
    """The model as transformers saves it, with the files of a SigLIP 1 release."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(model.config.vision_config.image_size)))
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(GOLDEN / name, folder / name)
    return folder


def gemma_tokenizer(folder: Path) -> Any:
    """Writes the files of a SigLIP 2 release with a tiny vocabulary of Gemma's kind; transformers' tokenizer of it."""
    from transformers import Siglip2Tokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges: list[tuple[str, str]] = []
    pieces = dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz0123456789.,!?'-")
    for word in WORDS:
        whole = "▁" + word
        for end in range(2, len(whole) + 1):
            pair = (whole[: end - 1], whole[end - 1])
            if "".join(pair) not in pieces:
                pieces["".join(pair)] = None
                merges.append(pair)
    vocabulary = {name: number for number, name in enumerate([*names, *pieces])}
    Siglip2Tokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text(encoding="utf-8"))
    rules["added_tokens"].append(
        {"id": len(vocabulary), "content": "\n\n", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": False}
    )  # fmt: skip
    rules["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
    }
    path.write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"padding_side": "right", "model_max_length": 64}))
    return Siglip2Tokenizer.from_pretrained(folder)
