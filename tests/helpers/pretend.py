"""Runs tiny models on a device that does not exist, with tensors that have a shape, a type and a device but no numbers.

    python -m tests.helpers.pretend FOLDER ...       one line of JSON a folder

What computes with tensors of two devices at once fails there as it does on an accelerator, and so does what asks for a
number on the host. A process of its own, because a device cannot be unregistered.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import foveal
from foveal.language.fixed import FixedStep, has_fixed_shapes
from foveal.language.pages import Pages

DEVICE = "pretend"


class Copies(torch.overrides.TorchFunctionMode):
    """Counts copies from the host, and lets `.to` work for a device that this torch is not built for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to:
            tensor, *rest = args
            values = [*rest, *kwargs.values()]
            places = [v.device if isinstance(v, Tensor) else v for v in values if isinstance(v, Tensor | torch.device)]
            if places and places[0].type != tensor.device.type:
                self.count += 1
                kinds = [v for v in values if isinstance(v, torch.dtype)]
                return torch.ops.aten._to_copy.default(tensor, dtype=(kinds or [tensor.dtype])[0], device=places[0])
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            self.count += 1
            return torch.ops.aten._to_copy.default(func(*args, **{**kwargs, "device": None}), device=kwargs["device"])
        return func(*args, **kwargs)


class Types(TorchDispatchMode):
    """The types of numbers that the device is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        found = (t for t in tree_leaves(out) if isinstance(t, Tensor) and t.device.type == DEVICE)
        self.seen |= {str(t.dtype).removeprefix("torch.") for t in found}
        return out


class Even:
    """How many tokens choose each expert, which no shape tells: all as many."""

    def __init__(self, tokens: Tensor, bounds: Tensor) -> None:
        self.tokens, self.experts = len(tokens), len(bounds) - 1

    def tolist(self) -> list[int]:
        return [self.tokens * number // self.experts for number in range(self.experts + 1)]


@contextmanager
def pretending() -> Iterator[tuple[Copies, Types]]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Copies()), stack.enter_context(Types())


def move(network: nn.Module) -> None:
    """All tensors of a network on the device, in place."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)
                    tensors[name] = nn.Parameter(made, False) if tensors is module._parameters else made


def picture(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(side).integers(0, 255, (side, side + 9, 3), dtype=np.uint8))


def answering(model: foveal.Model) -> dict[str, Any]:
    """A prompt with two pictures from a cache; and, where the family has them, a step of fixed shapes."""
    parts = [{"type": "image", "image": picture(side)} for side in (40, 60)]
    batch = model.process([{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}])
    language = model.network.language
    with pretending() as (copies, types):
        move(model.network)
        out = model.network(batch, cache=language.new_cache(1)).logits
        found: dict[str, Any] = {"device": out.device.type, "types": sorted(types.seen), "copies": copies.count}
        if has_fixed_shapes(language):
            before = copies.count
            scores = torch.empty(4, language.config.vocab, device=DEVICE)
            pages = Pages(9, 8, language.config.depth)
            step = FixedStep(language, pages, scores, rows=4, reach=2, axes=len(batch.positions))
            step.compute()
            found |= {"fixed copies": copies.count - before}
        language.norm.weight = nn.Parameter(torch.ones(language.config.width), False)  # one tensor is left behind
        try:
            model.network(batch)
        except RuntimeError as error:
            found |= {"left behind": str(error)}
    return found


def seeing(model: Any) -> dict[str, Any]:
    """Pictures, and texts where it reads them."""
    batches = [(model.process if hasattr(model, "process") else model.process_images)([picture(40), picture(60)])]
    if hasattr(model, "process_text"):
        batches.append(model.process_text(["a photo of a cat", "dog"]))
    with pretending() as (copies, types):
        move(model.network)
        for batch in batches:
            out = model.forward(batch)[0]
    return {"device": out.device.type, "types": sorted(types.seen), "copies": copies.count}


def main() -> None:
    _setup_privateuseone_for_python_backend(DEVICE)
    torch.searchsorted = Even
    for folder in sys.argv[1:]:
        model = foveal.load(folder, dtype="float32", device="cpu")
        found = answering(model) if isinstance(model, foveal.Model) else seeing(model)
        print(json.dumps({"folder": Path(folder).name} | found))


if __name__ == "__main__":
    main()
