"""Adapters folded into checkpoints, with proof: the written folder answers as the live adapter does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.core.errors import ConfigError, InputError, WeightsError
from foveal.engine.classifier import Classifier
from foveal.engine.dual import Dual
from foveal.engine.load import load
from foveal.engine.model import Model
from foveal.families.describe import folder_of
from foveal.families.load import torch_dtype
from foveal.nn.lora import adapted, merge, strip
from foveal.weights.write import refuse_foreign, replacing_folder

TOLERANCE = 1e-5
"""Largest difference in float32, as a share of the largest value."""
ROUNDING = {torch.float32: TOLERANCE, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest difference of the folder as it is stored. A narrower type rounds every weight of the model."""
SIZES = ((64, 64), (84, 56), (56, 112))
"""Of the pictures that are compared, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge did; differences are shares of the largest value that was compared.

    Attributes:
        source, adapter, target: where from, what, and where to.
        layers: how many layers were updated.
        samples, values: how many inputs were compared, and how many numbers of their results.
        largest: the largest absolute value among these.
        difference: largest difference between the live adapter and the merged network, both in float32.
        stored: the same for the written folder, opened again; with `dtype`, the type of most of its weights.
        moved: how far the adapter moved the results of the model itself.
        tolerance: what `stored` was allowed to be.
    """

    source: str
    adapter: str
    target: Path
    layers: int
    samples: int
    values: int
    largest: float
    difference: float
    stored: float
    dtype: str
    moved: float
    tolerance: float


def merge_adapter(
    source: str | Path | None,
    adapter: str | Path,
    target: str | Path,
    *,
    dtype: str | None = None,
    tolerance: float | None = None,
) -> Merged:
    """Writes `source` with `adapter` folded in to the folder `target`, which appears only if it proves equal.

    Everything is computed in float32 on the CPU; the sum of weight and update is rounded once, to the type of the file.

    Args:
        source: hub name or folder of the model; None for the small model inside.
        adapter: hub name or folder of the adapter.
        target: a new folder, or an earlier checkpoint, which is replaced.
        dtype: "bfloat16", "float16" or "float32" for all weights; by default each keeps its type.
        tolerance: largest difference of the written folder, as a share of the largest value; by default 1e-5 for
            float32, and what rounding explains for narrower types.

    Raises:
        InputError: target or tolerance cannot be used; WeightsError: the merged model does not answer as the live one;
        and what `foveal.load` raises.
    """
    kind = torch_dtype(dtype)
    if tolerance is not None and not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}; expected a share above 0 and below 1.")
    place = Path(target).absolute()
    if place.resolve() in (folder_of(source).resolve(), Path(adapter).resolve()):
        raise InputError(f"{target} is the model or the adapter itself; choose another folder to write to.")
    refuse_foreign(place)
    model = load(source, device="cpu")
    kinds = {name: kind or t.dtype for name, t in model.network.state_dict().items() if t.is_floating_point()}
    own = results(load(source, device="cpu", dtype="float32"))
    del model
    model = load(source, device="cpu", dtype="float32", adapter=adapter)
    layers = len(adapted(model.network))
    live = results(model)
    largest = max(float(t.abs().max()) for t in live)
    merge(model.network)
    strip(model.network)
    difference = _apart(live, results(model), largest)
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"the merged network differs from the live adapter by {difference:.1e} of the largest value in float32, "
            f"{TOLERANCE:.0e} is allowed; the adapter's values are too large to be added to these weights."
        )
    most = max(kinds.values(), key=list(kinds.values()).count)
    allowed = ROUNDING[most] if tolerance is None else tolerance
    state = model.network.state_dict(keep_vars=True)
    for name, stored in kinds.items():
        state[name].data = state[name].data.to(stored)
    with replacing_folder(place) as temporary:
        model.save(temporary)
        written = _apart(live, results(load(temporary, device="cpu", dtype="float32")), largest)
        if not written <= allowed:
            raise WeightsError(
                f"the merged checkpoint differs from the live adapter by {written:.1e} of the largest value, "
                f"{allowed:.0e} is allowed, so {target} was not written; try --dtype float32, or allow more."
            )
    return Merged(
        source=str(source or "the model inside"),
        adapter=str(adapter),
        target=place,
        layers=layers,
        samples=len(live),
        values=sum(t.numel() for t in live),
        largest=largest,
        difference=difference,
        stored=written,
        dtype=str(most).removeprefix("torch."),
        moved=_apart(live, own, largest),
        tolerance=allowed,
    )


def results(model: Model | Classifier | Dual) -> list[Tensor]:
    """What a model says to a few pictures of noise and texts: scores of tokens or labels, or vectors."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    words = ("Describe the picture.", "What is on the left?", "1, 2, 3")
    with torch.no_grad():
        if isinstance(model, Model):
            asked: list[list[dict[str, Any]]] = [[{"type": "text", "text": words[-1]}]]
            for picture, text in zip(pictures, words, strict=True):
                asked.append([{"type": "image", "image": picture}, {"type": "text", "text": text}])
            packs = [model.process([{"role": "user", "content": content}]) for content in asked]
            return [model.forward(pack).logits.float() for pack in packs]
        if isinstance(model, Dual):
            return [model.embed_images(pictures), model.embed_text(list(words))]
        if isinstance(model, Classifier):
            return [model.forward(model.process(pictures))[0].float()]
    raise ConfigError(f"{type(model).__name__} cannot be compared; merge adapters of models that answer or compare.")


def _apart(one: Sequence[Tensor], two: Sequence[Tensor], largest: float) -> float:
    """The largest difference as a share of `largest`; infinite for what is no number."""
    apart = max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) / max(largest, 1e-30)
    return apart if math.isfinite(apart) else math.inf
