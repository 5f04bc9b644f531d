"""Shapes in signatures are checked in every test: the hook must be in place before foveal is imported."""

# ruff: noqa: E402
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from jaxtyping import install_import_hook

install_import_hook(
    [
        f"foveal.{room}"
        for room in ("core.packed", "nn", "processing", "vision", "adapter", "language", "families", "engine")
    ],
    "beartype.beartype",
)

import torch
from hypothesis import settings

# Before several threads can: see `foveal.nn.rope`. The oracles compute cosines too.
for first_call in (torch.cos, torch.sin):
    first_call(torch.zeros(1))
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else max(1, min(2, os.cpu_count() or 1)))
settings.register_profile("foveal", deadline=None, derandomize=True)
settings.load_profile("foveal")
