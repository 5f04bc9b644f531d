"""DeepSeek-VL2 checkpoints for tests: those with recorded outputs, and random ones of any configuration."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

import foveal
from foveal.families.deepseek_vl2 import FAMILY, Config, processing
from foveal.families.load import random_network, save_folder
from foveal.processing.processor import Processor

GOLDEN = Path(__file__).parent.parent / "golden" / "deepseek_vl2"
CHECKPOINTS = ("mha_greedy", "mla_greedy", "mla_noaux_sigmoid", "mla_qlora_group_yarn")
COMMON = ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BEGIN = "<｜begin▁of▁sentence｜>"


@cache
def read(name: str) -> Any:
    """A JSON file of the recorded data."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def write(name: str, folder: Path, **changes: Any) -> Path:
    """A recorded checkpoint as a folder of the official layout; `changes` are for `language_config`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in COMMON:
        shutil.copy(GOLDEN / file, folder / file)
    config = json.loads((GOLDEN / name / "config.json").read_text())
    config["language_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / name / "model.safetensors", folder / "model.safetensors")
    shared = GOLDEN / name / "shared.json"
    if shared.exists():  # what two checkpoints have in common is stored once
        other = load_file(GOLDEN / "mha_greedy" / "model.safetensors")
        tensors = load_file(GOLDEN / name / "model.safetensors")
        tensors |= {key: other[key] for key in json.loads(shared.read_text())}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random(config: Config, folder: Path, *, seed: int = 0, std: float = 0.2) -> Any:
    """A random model, norms and biases too, saved with the recorded tokenizer and opened again."""
    network = random_network(FAMILY, config, seed=seed, std=std)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    source = folder / "source"
    source.mkdir(parents=True)
    for file in COMMON[1:]:
        shutil.copy(GOLDEN / file, source / file)
    processor = Processor.from_folder(source, processing(config), context_tokens=config.language.context)
    save_folder(
        folder / "model", family=FAMILY, config=config, network=network, processor=processor, generation={},
    )  # fmt: skip
    return foveal.load(folder / "model", dtype="float32", device="cpu")


def cases() -> dict[str, Any]:
    """The recorded conversations by name."""
    return {name: case for name, case in read("processor_cases.json").items() if not name.startswith("_")}


def prompt(case: dict[str, Any]) -> str:
    """A recorded conversation as a raw prompt; the release prints a space before answers that is no token."""
    return BEGIN + str(case["sft_format"]).replace("<|Assistant|>: ", "<|Assistant|>:")


def images(case: dict[str, Any]) -> list[str]:
    return [str(GOLDEN / file) for file in case["image_files"]]


def views(patches: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of patches beside what they hold of recorded views [V, 3, H, W]."""
    side = pixels.shape[-1] // 14
    seen = pixels[..., : side * 14, : side * 14].reshape(-1, 3, side, 14, side, 14)
    return patches, seen.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 3 * 14 * 14)
