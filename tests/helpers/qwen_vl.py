"""The recorded Qwen-VL checkpoint, and random ones in the published layout."""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import foveal
from foveal.families.load import random_network, save_folder
from foveal.families.qwen_vl import FAMILY
from foveal.processing.picture_chat import SPECIALS
from foveal.processing.picture_prompts import PicturePrompts
from foveal.processing.processor import Processor
from foveal.processing.tiktoken import from_ranks
from foveal.processing.tokens import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden/qwen_vl"


@cache
def recorded(name: str) -> dict[str, Any]:
    """A recorded JSON file, or the arrays of a recorded .npz file."""
    path = GOLDEN / name
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@cache
def whole_vocabulary() -> Tokenizer:
    text = lzma.decompress((GOLDEN / "vocabulary.tiktoken.xz").read_bytes()).decode("ascii")
    return from_ranks(text, SPECIALS, files={"qwen.tiktoken": text})


@cache
def model() -> foveal.Model:
    """The recorded checkpoint, float32."""
    return foveal.load(GOLDEN, dtype="float32", device="cpu")


def packed(text: str, vlm: foveal.Model | None = None) -> foveal.Packed:
    """A published prompt, its pictures from the recorded ones."""
    vlm = vlm or model()
    prompt, names = PicturePrompts(vlm.processor.tokenizer).prompt(text)
    return vlm.process(prompt=prompt, media=[str(GOLDEN / name) for name in names])


def processor(config: Any = None) -> Processor:
    """Processing with the small vocabulary, as of a model of our own."""
    config = config or FAMILY.size("tiny")
    processing = FAMILY.processing(config)
    return Processor(
        tokenizer=processing.tokenizer(GOLDEN), processing=processing, context_tokens=config.language.context
    )


def write(folder: Path, *, seed: int = 0, config: Any = None, generation: dict[str, Any] | None = None) -> Path:
    """A tiny random checkpoint."""
    config = config or FAMILY.size("tiny")
    save_folder(
        folder,
        family=FAMILY,
        config=config,
        network=random_network(FAMILY, config, seed=seed, std=0.1),
        processor=processor(config),
        generation=generation if generation is not None else recorded("generation_config.json"),
    )
    return folder
