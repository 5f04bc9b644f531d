"""Tiny random ViT checkpoints written by transformers through real files."""

import json
from pathlib import Path
from typing import Any

import torch

LABELS = ("cat", "dog", "crane, Grus", "crane", "bicycle", "tench, Tinca tinca", "猫")


def oracle(*, bare: bool = False, seed: int = 0, std: float = 0.15, **changes: Any) -> Any:
    """A random `ViTForImageClassification` (or `ViTModel`) whose every parameter is random, norms and biases too."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    sizes: dict[str, Any] = {
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 72,
        "image_size": 48,
        "patch_size": 8,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: number for number, label in enumerate(LABELS)},
    }
    config = ViTConfig(**(sizes | changes))
    torch.manual_seed(seed)
    model = (ViTModel if bare else ViTForImageClassification)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * std
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model


def preprocessor(side: int = 48, **changes: Any) -> dict[str, Any]:
    """preprocessor_config.json as the publisher of ViT wrote it."""
    half = [0.5, 0.5, 0.5]
    return {"do_normalize": True, "do_resize": True, "image_mean": half, "image_std": half, "size": side} | changes


def write(model: Any, folder: Path, **changes: Any) -> Path:
    """The model as transformers saves it, with the preprocessor file of a release."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(model.config.image_size, **changes)))
    return folder
