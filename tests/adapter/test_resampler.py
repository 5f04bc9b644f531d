"""The resampler beside PyTorch's own attention, pictures of several sizes, and its table of positions."""

import math

import numpy as np
import pytest
import torch

from foveal.adapter.resampler import Resampler
from foveal.nn.embed import resized_positions, sincos_table


def resampler(side=4, heads=2, width=16, vision_width=12):
    torch.manual_seed(0)
    module = Resampler(vision_width, width, side=side, heads=heads).requires_grad_(False)
    for name, parameter in module.named_parameters():
        if name != "positions":
            parameter.normal_()
    return module


def expected(module, x, height, width):
    """One picture by `nn.MultiheadAttention`."""
    d = module.query.shape[1]
    attention = torch.nn.MultiheadAttention(d, module.heads, batch_first=True).requires_grad_(False)
    attention.in_proj_weight.copy_(module.qkv.weight)
    attention.in_proj_bias.copy_(module.qkv.bias)
    attention.out_proj.weight.copy_(module.out.weight)
    attention.out_proj.bias.copy_(module.out.bias)
    kv = module.norm_kv(module.kv(x))
    query = module.norm_query(module.query) + module.positions
    key = kv + resized_positions(module.positions, module.side, height, width)
    found = attention(query[None], key[None], kv[None], need_weights=False)[0][0]
    return module.norm_after(found) @ module.project


@pytest.mark.parametrize("grids", [[(4, 4)], [(8, 8), (8, 8)], [(8, 8), (4, 4), (4, 4), (3, 7)]])
def test_pictures_are_apart(grids):
    module = resampler()
    pictures = [torch.randn(h * w, 12) for h, w in grids]
    found = module(torch.cat(pictures), np.array([(1, h, w) for h, w in grids]))
    theirs = torch.cat([expected(module, x, *grid) for x, grid in zip(pictures, grids, strict=True)])
    assert found.shape == (16 * len(grids), 16)
    torch.testing.assert_close(found, theirs, rtol=0, atol=2e-5)  # worst seen: 0, on values up to 19


def test_the_table_is_made_of_columns_then_rows():
    table = sincos_table(3, 8)
    for row in range(3):
        for column in range(3):
            own = table[3 * row + column]
            for half, place in ((own[:4], column), (own[4:], row)):
                turns = [place, place / 100]  # 10000 ** (-4 i / 8)
                wanted = [*(math.sin(t) for t in turns), *(math.cos(t) for t in turns)]
                torch.testing.assert_close(half, torch.tensor(wanted), rtol=0, atol=1e-6)


def test_the_table_is_no_parameter_that_learns():
    module = Resampler(12, 16, side=4, heads=2)
    module(torch.randn(16, 12), np.array([(1, 4, 4)])).sum().backward()
    assert module.positions.grad is None
    assert all(p.grad is not None for n, p in module.named_parameters() if n != "positions")
    assert torch.equal(module.positions, sincos_table(4, 16))


def test_half_precision_stays_near():
    module, grids = resampler(), np.array([(1, 8, 8)])
    x = torch.randn(64, 12)
    exact = module(x, grids)
    found = module.to(torch.bfloat16)(x.bfloat16(), grids)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() / exact.norm() < 0.05  # measured: 0.0135
