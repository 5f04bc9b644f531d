import numpy as np
import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.vision.config import WindowConfig
from foveal.vision.windows import WindowTower, window_order

SMALL = WindowConfig(width=16, depth=3, heads=2, mlp_width=20, patch=2, window_px=16, full=(1,))


def grids(*rows):
    return np.array(rows, dtype=np.int64)


@pytest.mark.parametrize("seed", range(30))
def test_order_and_boundaries_are_those_of_transformers(seed):
    """transformers pads to whole windows, and one more where nothing is to be padded; then it drops the pads."""
    from transformers.vision_utils import get_vision_window_index

    rng = np.random.default_rng(seed)
    sizes = np.stack([rng.integers(1, 4, 3), 2 * rng.integers(1, 14, 3), 2 * rng.integers(1, 14, 3)], axis=1)
    window, patch = [(112, 14), (56, 14), (84, 14), (64, 4)][seed % 4]
    theirs, bounds = get_vision_window_index(
        torch.from_numpy(sizes), spatial_merge_size=2, window_size=window, patch_size=patch
    )
    order, starts = window_order(sizes, 2, window // 2 // patch)
    np.testing.assert_array_equal(order, theirs.numpy())
    assert starts == torch.unique_consecutive(bounds).tolist()


def test_a_window_is_drawn_as_it_is():
    order, starts = window_order(grids((1, 6, 10)), 2, 2)
    # 3 rows and 5 columns of tokens; windows of 2 x 2 and what is left of them
    assert order.tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
    assert np.diff(starts).tolist() == [16, 16, 8, 8, 8, 4]
    assert window_order(np.zeros((0, 3), np.int64), 2, 4)[1] == [0]


def test_windows_and_frames_bound_what_a_patch_sees():
    tower = WindowTower(SMALL).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    shape = grids((2, 12, 20))  # two steps of 6 x 10 tokens
    patches = torch.randn(480, 24, generator=torch.Generator().manual_seed(0))
    changed = patches.clone()
    changed[0] += 1  # a patch of token 0, in the first window of the first step

    def differing(config_full):
        tower.config = WindowConfig(**{**vars(SMALL), "full": config_full})
        order, _ = tower.order(shape)
        one, two = tower(patches, shape), tower(changed, shape)
        moved = (one != two).any(1).view(-1, 4).any(1).numpy()
        return sorted(order[moved].tolist())

    window = [row * 10 + column for row in range(4) for column in range(4)]
    assert differing(()) == window
    assert differing((1,)) == list(range(60))  # the whole first step, and nothing of the second


def test_pictures_alone_and_together():
    tower = WindowTower(SMALL).eval()
    one, two = grids((1, 6, 10)), grids((2, 8, 4))
    a, b = torch.randn(60, 24), torch.randn(64, 24)
    together = tower(torch.cat((a, b)), np.concatenate((one, two)))
    torch.testing.assert_close(together[:60], tower(a, one), rtol=0, atol=1e-6)
    torch.testing.assert_close(together[60:], tower(b, two), rtol=0, atol=1e-6)


def test_a_window_below_one_token_is_refused():
    with pytest.raises(ConfigError, match="a window of 3 px is smaller than a merged token"):
        WindowConfig(width=16, depth=1, heads=2, mlp_width=20, patch=2, window_px=3)


def test_parameters_are_counted():
    assert SMALL.parameters == sum(p.numel() for p in WindowTower(SMALL).parameters())
