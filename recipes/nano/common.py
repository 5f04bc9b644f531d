"""What the stages of nano share: sizes, places on disk, and the feed of scenes."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from foveal.adapter.merger import Merger
from foveal.data.scenes import GRIDS, Scene
from foveal.data.sprites import SpriteSet
from foveal.processing.patches import Normalize, image_patches
from foveal.processing.resize import PatchGrid
from foveal.train.checkpoint import read_checkpoint
from foveal.vision.vit import VisionConfig, VisionTower

BUILD = Path("build/nano")
VISION = VisionConfig(width=192, depth=6, heads=4, mlp_width=768)
WIDTH = 256
GRID = PatchGrid(patch=14, merge=2, temporal=2, min_px=140 * 140, max_px=168 * 168)
NORMALIZE = Normalize(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


def sprites() -> SpriteSet:
    return SpriteSet.load(BUILD / "sprites.npz")


def patches_of(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Patch rows of scenes end to end, and their grids."""
    rows, grids = [], []
    for scene in scenes:
        patches, _, grid = image_patches(
            Image.fromarray(scene.image), grid=GRID, normalize=NORMALIZE, min_px=1, max_px=10**6
        )
        rows.append(patches)
        grids.append(grid)
    return np.concatenate(rows), np.array(grids, np.int64)


def grid_of(step: int) -> tuple[int, int]:
    """All scenes of a step have one grid, which lets them attend as one batch."""
    random = np.random.default_rng([77, step])
    return GRIDS[int(random.integers(len(GRIDS)))] if random.random() < 0.6 else GRIDS[0]


class Feed(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Batch number s by index, for a DataLoader with one worker; `make(s)` builds it."""

    def __init__(self, make) -> None:  # type: ignore[no-untyped-def]
        self.make = make

    def __getitem__(self, step: int):  # type: ignore[no-untyped-def]
        return self.make(step)


RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
"""Which of how many processes this is; torchrun says so."""


def join_processes() -> None:
    """Several processes train together, each on a core of its own; one alone leaves the last core to its feed."""
    torch.set_num_threads(1)
    if WORLD > 1:
        os.sched_setaffinity(0, [RANK])
        torch.distributed.init_process_group("gloo")


def _worker(_: int) -> None:
    os.sched_setaffinity(0, [RANK if WORLD > 1 else (os.cpu_count() or 1) - 1])
    torch.set_num_threads(1)


def feed(make, first: int, steps: int) -> Iterator:  # type: ignore[no-untyped-def,type-arg]
    """Batches from `first` on, made by a worker process some steps ahead."""
    return iter(
        torch.utils.data.DataLoader(
            Feed(make),
            batch_size=None,
            sampler=range(first, steps),
            num_workers=1,
            prefetch_factor=8,
            worker_init_fn=_worker,
        )
    )


def compiled(module: torch.nn.Module) -> None:
    """Compiles blocks of a tower or a decoder in place; the same code then runs about 1.5 times as fast."""
    torch._dynamo.config.cache_size_limit = 256
    torch._dynamo.config.accumulated_cache_size_limit = 1024
    for part in module.modules():
        if type(part).__name__ in ("VisionBlock", "DecoderLayer", "Merger"):
            part.compile(dynamic=False)


def tower() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"vision": VisionTower(VISION), "adapter": Merger(VISION.width, WIDTH, VISION.merge)})


def start_weights(module: torch.nn.Module, seed: int) -> None:
    """Normal weights of deviation 0.02 (truncated tower depth needs no more), zero biases, unit norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 5:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(0, min(0.03, parameter.shape[1] ** -0.5), generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)


def take_over(whole: torch.nn.Module, path) -> None:  # type: ignore[no-untyped-def]
    """Fills what an earlier stage trained: its averaged weights if it kept any, else those in float32.

    The tower's stages name parts without "vlm.".
    """
    kept, _ = read_checkpoint(path)
    found = 0
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            short = name.removeprefix("vlm.")
            for key in (f"average/{name}", f"average/{short}", f"master/{name}", f"master/{short}"):
                if key in kept:
                    parameter.copy_(kept[key])
                    found += 1
                    break
    logging.info("%d tensors taken over from %s", found, path)
