"""Tiles to tokens: the order within a token, of tokens, and of the learned ones between them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.adapter.tiles import TileAdapter
from foveal.core.errors import InputError
from foveal.nn.keep import Keep


def adapter(**changes) -> TileAdapter:
    torch.manual_seed(0)
    sizes = {"vision_width": 3, "width": 1, "mlp_width": 5, "depth": 2, "join": 2, "global_first": True, **changes}
    return TileAdapter(sizes.pop("vision_width"), sizes.pop("width"), sizes.pop("mlp_width"), **sizes)


def lettered(part: TileAdapter, count: int, side: int) -> torch.Tensor:
    """Views of `side` x `side` tokens that are numbered, with -1 as newline and -2 as separator."""
    with torch.no_grad():
        part.newline.fill_(-1)
        part.separator.fill_(-2)
    return torch.arange(count * side**2, dtype=torch.float32).view(count, side**2, 1)


def test_the_drawing():
    part = adapter()
    views = lettered(part, 3, 2)
    expected = [0, 1, -1, 2, 3, -1, -2, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    assert part.arrange(views, (2, 1)).flatten().tolist() == expected
    down = [0, 1, -1, 2, 3, -1, -2, 4, 5, -1, 6, 7, -1, 8, 9, -1, 10, 11, -1]
    assert part.arrange(views, (1, 2)).flatten().tolist() == down


def test_the_global_view_may_come_last():
    part = adapter(global_first=False)
    views = lettered(part, 2, 2)
    assert part.arrange(views, (1, 1)).flatten().tolist() == [4, 5, -1, 6, 7, -1, -2, 0, 1, -1, 2, 3, -1]


@given(st.integers(1, 6), st.integers(2, 3), st.integers(2, 4))
@settings(max_examples=30)
def test_projection_is_unfold_and_linear_layers(side, join, depth):
    part = adapter(join=join, depth=depth, width=4)
    x = torch.randn(2, side * side, 3)
    grid = x.view(2, side, side, 3).permute(0, 3, 1, 2)
    short = -side % join
    columns = F.unfold(F.pad(grid, (0, short, 0, short)), kernel_size=join, stride=join).transpose(1, 2)
    for index, layer in enumerate(part.layers):
        columns = layer(F.gelu(columns) if index else columns)
    torch.testing.assert_close(part.project(x, side), columns, rtol=0, atol=1e-6)
    assert len(part.layers) == depth


def test_several_pictures_are_each_alone():
    part = adapter(width=4)
    grids, tiles = np.array([[3, 3, 3], [2, 3, 3], [5, 3, 3]]), np.array([[1, 2], [1, 1], [2, 2]])
    x = torch.randn(90, 3)
    keep = Keep(["adapter.views"])
    together = part(x, grids, tiles, keep)
    assert keep.finish()["adapter.views"].shape == (10, 4, 4)
    starts = [0, 27, 45, 90]
    alone = [part(x[a:b], grids[i : i + 1], tiles[i : i + 1]) for i, (a, b) in enumerate(pairwise(starts))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    assert len(together) == sum(2 * 3 + 1 + 2 * h * (2 * w + 1) for w, h in tiles.tolist())


def test_no_picture_gives_no_token():
    part = adapter(width=4)
    assert part(torch.zeros(0, 3), np.zeros((0, 3), np.int64), np.zeros((0, 2), np.int64)).shape == (0, 4)


def test_an_unknown_result_is_named():
    with pytest.raises(InputError, match=r"adapter\.view'"):
        keep = Keep(["adapter.view"])
        adapter(width=4)(torch.randn(18, 3), np.array([[2, 3, 3]]), np.array([[1, 1]]), keep)
        keep.finish()
