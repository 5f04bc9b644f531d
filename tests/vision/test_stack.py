import numpy as np
import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.vision.config import StackConfig
from foveal.vision.stack import StackTower
from foveal.vision.vit import merge_order

SMALL = StackConfig(width=16, depth=3, heads=2, mlp_width=20, patch=2, side=4, inner=(0, 2))


def grids(*rows):
    return np.array(rows, dtype=np.int64)


@pytest.fixture
def tower():
    tower = StackTower(SMALL).eval()
    with torch.no_grad():
        for number, parameter in enumerate(tower.parameters()):
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    return tower.requires_grad_(False)


def test_inner_features_come_in_the_order_of_their_blocks(tower):
    from foveal.nn.keep import Keep

    keep = Keep([f"vision.blocks.{i}" for i in range(3)])
    x, inner = tower(torch.randn(24, 24), grids((1, 4, 6)), keep)
    kept = keep.finish()
    assert torch.equal(inner[0], kept["vision.blocks.0"])
    assert torch.equal(inner[1], kept["vision.blocks.2"]) and torch.equal(inner[1], x)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 2, 2), (1, 6, 4), (1, 2, 14), (3, 10, 8)])
def test_positions_are_stretched_corner_on_corner(tower, shape):
    """Each patch's place in the table, by hand, in merge-group order."""
    frames, height, width = shape
    table = tower.positions.view(4, 4, 16)
    expected = []
    for group_row in range(height // 2):
        for group_column in range(width // 2):
            for i in range(2):
                for j in range(2):
                    y = (2 * group_row + i) * 3 / (height - 1)
                    x = (2 * group_column + j) * 3 / (width - 1)
                    up, left = min(int(y), 2), min(int(x), 2)
                    a, b = y - up, x - left
                    top = table[up, left] * (1 - b) + table[up, left + 1] * b
                    low = table[up + 1, left] * (1 - b) + table[up + 1, left + 1] * b
                    expected.append(top * (1 - a) + low * a)
    rows = merge_order(grids(shape), 2)
    placed = tower._placed(grids(shape), *rows)
    torch.testing.assert_close(placed, torch.stack(expected).repeat(frames, 1), rtol=0, atol=2e-6)


def test_pictures_alone_and_together(tower):
    one, two = grids((1, 6, 10)), grids((2, 8, 4))
    a, b = torch.randn(60, 24), torch.randn(64, 24)
    together, inner = tower(torch.cat((a, b)), np.concatenate((one, two)))
    for part, patches, shape in ((slice(0, 60), a, one), (slice(60, 124), b, two)):
        alone, own = tower(patches, shape)
        torch.testing.assert_close(together[part], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(inner[1][part], own[1], rtol=0, atol=1e-5)
    # A frame does not see another.
    changed = b.clone()
    changed[:32] += 1
    torch.testing.assert_close(tower(changed, two)[0][32:], tower(b, two)[0][32:], rtol=0, atol=0)


def test_parameters_are_counted():
    assert SMALL.parameters == sum(p.numel() for p in StackTower(SMALL).parameters())


@pytest.mark.parametrize("inner", [(0, 0), (3,), (-1,)])
def test_inner_blocks_have_to_be_there(inner):
    with pytest.raises(ConfigError, match="are not different blocks of 3"):
        StackConfig(width=16, depth=3, heads=2, mlp_width=20, inner=inner)
