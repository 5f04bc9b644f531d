"""Tiny random DeepSeek-VL checkpoints: the recorded ones in DeepSeek's layout, and ones that transformers writes."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden/deepseek_vl"
IMAGE = "<image_placeholder>"


def original(kind: str, folder: Path) -> Path:
    """A recorded checkpoint ("hybrid" or "siglip") in DeepSeek's own layout, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("config.json", "preprocessor_config.json", "processor_config.json", "model.safetensors")
    for file in (*(GOLDEN / kind / n for n in names), GOLDEN / "tokenizer.json", GOLDEN / "tokenizer_config.json"):
        shutil.copy(file, folder / file.name)
    return folder


def messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """A recorded conversation in the form of messages; the empty last turn is where the assistant is to answer."""
    files, made = list(case["image_files"]), []
    for turn in case["conversation"][:-1]:
        parts: list[dict[str, Any]] = []
        for index, text in enumerate(turn["content"].split(IMAGE)):
            if index:
                parts.append({"type": "image", "image": GOLDEN / files.pop(0)})
            if text:
                parts.append({"type": "text", "text": text})
        made.append({"role": turn["role"].lower(), "content": parts})
    return made


def squares(rows: np.ndarray, patch: int, side: int) -> np.ndarray:
    """Patch rows of whole pictures put together again, [N, 3, S, S]."""
    count = len(rows) // side**2
    cut = rows.reshape(count, side, side, 3, patch, patch).transpose(0, 3, 1, 4, 2, 5)
    return cut.reshape(count, 3, side * patch, side * patch)


TEXT = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 360,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "image_size": 48,
    "patch_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_act": "gelu",
}
SAM = {
    "hidden_size": 36,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "output_channels": 8,
    "image_size": 144,
    "patch_size": 8,
    "global_attn_indexes": [1],
}


def oracle(*, hybrid: bool, tied: bool = False, seed: int = 0, std: float = 0.15, **changes: dict[str, Any]) -> Any:
    """A random model of transformers, every parameter random. `changes` are to `text`, `siglip` or `sam` settings."""
    from transformers import (
        DeepseekVLConfig,
        DeepseekVLForConditionalGeneration,
        DeepseekVLHybridConfig,
        DeepseekVLHybridForConditionalGeneration,
    )

    parts: dict[str, Any] = {
        "text_config": TEXT | changes.get("text", {}),
        "vision_config": SIGLIP | changes.get("siglip", {}),
        "image_token_id": tokenizer().convert_tokens_to_ids(IMAGE),
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(seed)
    if hybrid:
        parts["high_res_vision_config"] = SAM | changes.get("sam", {})
        model = DeepseekVLHybridForConditionalGeneration(DeepseekVLHybridConfig(**parts))
    else:
        model = DeepseekVLForConditionalGeneration(DeepseekVLConfig(**parts))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * std
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model.eval()


@cache
def tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "tokenizer.json"),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
        pad_token="<｜▁pad▁｜>",
        extra_special_tokens={"image_token": IMAGE},
    )


def processor(model: Any) -> Any:
    """transformers' processor with the settings of the converted releases, at the sizes of `model`."""
    from transformers import (
        DeepseekVLHybridImageProcessorPil,
        DeepseekVLHybridProcessor,
        DeepseekVLImageProcessorPil,
        DeepseekVLProcessor,
    )

    def square(side: int) -> dict[str, int]:
        return {"height": side, "width": side}

    seen = model.config.vision_config
    half = [0.5, 0.5, 0.5]
    large = getattr(model.config, "high_res_vision_config", None)
    count = (seen.image_size // seen.patch_size) ** 2
    template = (GOLDEN / "chat_template.jinja").read_text(encoding="utf-8")
    if large is None:
        image = DeepseekVLImageProcessorPil(size=square(seen.image_size), image_mean=half, image_std=half)
        return DeepseekVLProcessor(image, tokenizer(), chat_template=template, num_image_tokens=count)
    image = DeepseekVLHybridImageProcessorPil(
        size=square(seen.image_size),
        high_res_size=square(large.image_size),
        image_mean=half,
        image_std=half,
        resample=2,
    )
    return DeepseekVLHybridProcessor(image, tokenizer(), chat_template=template, num_image_tokens=count)


def write(model: Any, folder: Path, *, shard: str = "5GB", old: bool = False) -> Path:
    """Model and processor as transformers saves them; `old` as version 4 did and the converted releases are."""
    model.save_pretrained(folder, max_shard_size=shard)
    theirs = processor(model)
    theirs.save_pretrained(folder)
    if old:
        _as_released(folder)
    return folder


def _as_released(folder: Path) -> None:
    """Names with `vision_model.` twice, one file of image settings by itself, and no word about tied embeddings."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    renamed = {n.replace("model.vision_model.", "model.vision_model.vision_model.", 1): t for n, t in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "processor_config.json"
    overall = json.loads(path.read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(overall.pop("image_processor")))
    path.write_text(json.dumps(overall))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"]
    path.write_text(json.dumps(config))
