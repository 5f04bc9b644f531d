"""The tower: images of any size lie end to end and do not see each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.errors import ConfigError
from foveal.vision.vit import VisionConfig, VisionTower, frame_starts, merge_order

CONFIG = VisionConfig(width=32, depth=2, heads=2, mlp_width=48, patch=2)
GRIDS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 4).map(lambda n: 2 * n), st.integers(1, 4).map(lambda n: 2 * n)),
    min_size=1,
    max_size=4,
)


@given(GRIDS)
def test_packed_equals_each_alone(grids):
    torch.manual_seed(0)
    tower = VisionTower(CONFIG)
    table = np.array(grids)
    patches = torch.randn(int(table.prod(1).sum()), CONFIG.patch_values)
    with torch.no_grad():
        packed = tower(patches, table)
        start = 0
        for grid in grids:
            stop = start + int(np.prod(grid))
            alone = tower(patches[start:stop], np.array([grid]))
            torch.testing.assert_close(packed[start:stop], alone, rtol=0, atol=1e-5)
            start = stop


@given(GRIDS)
def test_merge_order_visits_every_patch_once_group_by_group(grids):
    table = np.array(grids)
    rows, cols = merge_order(table, 2)
    start = 0
    for frames, height, width in grids:
        for _ in range(frames):
            stop = start + height * width
            places = list(zip(rows[start:stop].tolist(), cols[start:stop].tolist(), strict=True))
            assert sorted(places) == [(r, c) for r in range(height) for c in range(width)]
            for group in range(0, len(places), 4):
                (r, c), *others = places[group : group + 4]
                assert others == [(r, c + 1), (r + 1, c), (r + 1, c + 1)]
            start = stop


def test_frames_are_apart():
    assert frame_starts(np.array([[2, 4, 2], [1, 2, 2]])) == [0, 8, 16, 20]
    assert frame_starts(np.empty((0, 3), np.int64)) == [0]


def test_memory_has_no_square_of_the_patches():
    """Without a mask, torch's fused attention is taken; its largest result is as long as the patches."""
    tower = VisionTower(CONFIG)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for item in out if isinstance(out, tuple) else (out,):
                if isinstance(item, torch.Tensor):
                    largest = max(largest, item.numel())
            return out

    patches = torch.randn(64 * 64, CONFIG.patch_values)
    with torch.no_grad(), Watch():
        tower(patches, np.array([[1, 64, 64]]))
    assert largest <= len(patches) * 3 * CONFIG.width


def test_head_size_must_suit_two_axes():
    with pytest.raises(ConfigError, match="divisible by 4"):
        VisionConfig(width=30, depth=1, heads=2, mlp_width=8)
