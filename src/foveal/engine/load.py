"""`foveal.load`: opens any model and gives what it can do."""

from pathlib import Path
from typing import Any, overload

import torch

from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.engine.classifier import Classifier
from foveal.engine.dual import Dual
from foveal.engine.model import Model, default_device
from foveal.engine.options import EngineOptions
from foveal.engine.quantize import quantized
from foveal.families.describe import folder_of
from foveal.families.dual import DualEncoder
from foveal.families.load import load as load_folder
from foveal.families.quantize import Quantization
from foveal.families.vlm import VLM
from foveal.vision.classifier import ImageClassifier


@overload
def load(
    name: None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    budget: MediaBudget | None = None,
    adapter: str | Path | None = None,
    engine: EngineOptions | None = None,
    quantize: str | Quantization | None = None,
    prepare: bool | None = None,
) -> Model: ...


@overload
def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    budget: MediaBudget | None = None,
    adapter: str | Path | None = None,
    engine: EngineOptions | None = None,
    quantize: str | Quantization | None = None,
    prepare: bool | None = None,
) -> Any: ...


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    budget: MediaBudget | None = None,
    adapter: str | Path | None = None,
    engine: EngineOptions | None = None,
    quantize: str | Quantization | None = None,
    prepare: bool | None = None,
) -> Any:
    """Opens a model.

    Args:
        name: a hub name such as "Qwen/Qwen2-VL-2B-Instruct" or a checkpoint folder; None opens the small
            model that ships inside the package.
        dtype: "bfloat16", "float16" or "float32"; by default the type that the files hold.
        device: "cpu", "cuda", "mps"; by default an accelerator if there is one.
        revision: branch, tag or commit of a hub name.
        budget: bounds for every medium that the model is asked about.
        adapter: folder or hub name of a LoRA adapter (PEFT's files), computed beside the weights.
        engine: bounds of the engine of a model that answers questions: memory, tokens of a step, guesses.
        quantize: "int8" or "int4" rounds the language model's linear layers while they are opened; `Quantization`
            names other parts and group sizes.
        prepare: give linear layers the form that computes fastest, while the model answers (`foveal.engine.prepare`).
            None: where no bit of an answer changes by it, which is in bfloat16 on a CPU with tiles (AMX). True: also
            on CPUs where answers change by roundings meanwhile. False: never.

    Returns:
        `Model` for what answers questions, `Classifier` for what names pictures, `Dual` for what compares pictures
        and texts.

    Raises:
        HubError: the name is no folder and cannot be fetched.
        ConfigError: the files describe something that Foveal does not compute.
        WeightsError: tensors are missing, surplus or damaged.
    """
    folder = folder_of(name, revision=revision)
    place = default_device() if device is None else device
    loaded = quantized(load_folder(folder, dtype=dtype, device=place, adapter=adapter), quantize)
    bounds = budget or MediaBudget()
    if isinstance(loaded.network, VLM):
        return Model(loaded, budget=bounds, engine=engine or EngineOptions(), prepare=prepare)
    if engine is not None:
        raise InputError(f"{folder} holds a {loaded.family.name} model, which writes no answers; leave out engine=.")
    if isinstance(loaded.network, ImageClassifier):
        return Classifier(loaded, budget=bounds)
    if isinstance(loaded.network, DualEncoder):
        return Dual(loaded, budget=bounds)
    raise ConfigError(f"{folder} holds a {loaded.family.name} model, for which Foveal has no use yet.")
