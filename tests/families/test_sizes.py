"""What planning says of a network is what the network is: parameters, and memory at work."""

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveal.core.box import ImageView
from foveal.core.packed import Medium, Packed, Run
from foveal.families.describe import families
from foveal.families.qwen2_vl import FAMILY, Config


@pytest.mark.parametrize("name", ["qwen2_vl"])
def test_parameters_are_those_of_the_built_network(name: str):
    family = families()[name]
    for size, config in family.sizes.items():
        with torch.device("meta"):
            network = family.build(config)
        built = {part: sum(p.numel() for p in m.parameters()) for part, m in network.named_children()}
        assert family.parameters(config) == built, size


@pytest.mark.parametrize(("size", "published"), [("2b", 2_208_985_600), ("7b", 8_291_375_616), ("72b", 73_405_560_320)])
def test_parameters_are_the_published_ones(size: str, published: int):
    assert sum(FAMILY.parameters(FAMILY.sizes[size]).values()) == published


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that come to life inside, and the most that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


def one_image(side: int, text: int) -> Packed:
    patches, tokens = side**2, side**2 // 4
    grid = (1, side, side)
    view = ImageView(original=(1, 1), processed=(1, 1))
    return Packed(
        tokens=np.zeros(tokens + text, np.int64),
        positions=np.tile(np.arange(tokens + text), (3, 1)),
        starts=np.array([0, tokens + text]),
        deltas=np.array([0]),
        patches=np.zeros((patches, 1176), np.float32),
        grids=np.array([grid]),
        media=(Medium(kind="image", sequence=0, view=view, grid=grid, tokens=tokens),),
        runs=(Run(start=0, length=tokens, medium=0),),
    )


SHAPES = {
    "as the 2b": {"width": 96, "mlp_width": 384, "heads": 2, "text": (96, 560, 3, 1)},
    "as the 7b": {"width": 96, "mlp_width": 384, "heads": 2, "text": (192, 1008, 6, 1)},
    "narrow MLPs": {"width": 96, "mlp_width": 96, "heads": 2, "text": (192, 64, 6, 3)},
}


def sized(width: int, mlp_width: int, heads: int, text: tuple[int, int, int, int]) -> Config:
    base = FAMILY.sizes["2b"]
    vision = replace(base.vision, width=width, mlp_width=mlp_width, heads=heads, depth=2)
    text_width, text_mlp, text_heads, kv_heads = text
    language = replace(
        base.language, width=text_width, mlp_width=text_mlp, heads=text_heads, kv_heads=kv_heads,
        head_dim=32, section=(4, 6, 6), depth=2, vocab=64,
    )  # fmt: skip
    return Config(vision=vision, language=language)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_at_work_is_what_planning_says(shape: str, dtype: torch.dtype):
    """Within 2 %; the worst that was measured is 0.8 %."""
    config = sized(**SHAPES[shape])
    network = FAMILY.build(config).to(dtype).eval().requires_grad_(False)
    batch = one_image(side=64, text=200)
    tokens, item = len(batch.tokens), dtype.itemsize
    with torch.inference_mode():
        with Peak() as tower:
            visual = network.see(batch)
        with Peak() as decoder:
            cache = network.language.new_cache(1, capacity=tokens)
            x = network.embed(batch, visual)
            network.language(x, torch.from_numpy(batch.positions), batch.starts.tolist(), cache=cache)
    weights = network.vision.patch.weight.nbytes  # a view of them is taken for new
    expected = config.vision.work_bytes(64**2, item)
    assert tower.peak - batch.patches.nbytes - weights == pytest.approx(expected, rel=0.02)
    held = config.language.cache_values * tokens * item + visual.nbytes
    share = (decoder.peak - held) / config.language.work_bytes(tokens, item)
    # Kernels for bfloat16 write over what they read: up to 26 % less than planned, which is right without them.
    assert (0.98 if item == 4 else 0.7) <= share <= 1.02
