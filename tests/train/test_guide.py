"""A guided head ends up looking where it was told, and the loss is the attention's own."""

import numpy as np
import pytest
import torch

from foveal.core.errors import InputError
from foveal.language.decoder import Decoder, DecoderConfig
from foveal.nn.attention import attend_packed
from foveal.train.guide import Guide, guide_loss

CONFIG = DecoderConfig(
    width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, vocab=20, theta=100.0, section=(4,), tied=True
)
STARTS = (0, 9, 15)
POSITIONS = torch.cat((torch.arange(9), torch.arange(6)))[None]


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(CONFIG)


def guide(*pairs: tuple[int, int]) -> Guide:
    wanted = np.zeros((len(pairs), STARTS[-1]), bool)
    for row, (_, key) in enumerate(pairs):
        wanted[row, key] = True
    return Guide(queries=np.array([query for query, _ in pairs]), wanted=wanted)


def test_the_share_is_what_attention_gives():
    """With values that are one in the wanted place, attention returns its share."""
    network = decoder()
    x = torch.randn(STARTS[-1], CONFIG.width)
    rotation = network.rotary(CONFIG, POSITIONS)
    block = network.layers[1]
    q, k, _ = block.attention.project(block.norm1(x))
    values = torch.zeros(STARTS[-1], 2, 1)
    values[[3, 11]] = 1.0
    given = attend_packed(rotation(q), rotation(k), values, STARTS, causal=True)[[7, 13], :2].detach()
    loss, share = guide_loss(network, 1, (0, 1), x, POSITIONS, STARTS, guide((7, 3), (13, 11)))
    assert share == pytest.approx(float(given.mean()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float(-given.log().mean()), rel=1e-5)


def test_a_query_with_nothing_to_see_does_not_count():
    network, x = decoder(), torch.randn(STARTS[-1], CONFIG.width)
    empty = Guide(queries=np.array([7]), wanted=np.zeros((1, STARTS[-1]), bool))
    loss, share = guide_loss(network, 1, (0,), x, POSITIONS, STARTS, empty)
    assert (float(loss.detach()), share) == (0.0, 0.0)


def test_training_moves_the_head():
    network, x = decoder(), torch.randn(STARTS[-1], CONFIG.width)
    aims = guide((5, 2), (8, 4), (14, 10))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    shares = []
    for _ in range(60):
        loss, share = guide_loss(network, 1, (0, 1), x, POSITIONS, STARTS, aims)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(share)
    assert shares[0] < 0.4 < 0.95 < shares[-1]


def test_what_cannot_be_guided():
    network, x = decoder(), torch.randn(STARTS[-1], CONFIG.width)
    with pytest.raises(InputError, match="the layer has 4"):
        guide_loss(network, 1, (0, 4), x, POSITIONS, STARTS, guide((5, 2)))
