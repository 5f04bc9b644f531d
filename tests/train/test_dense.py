"""The dense read-outs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.data.dense import class_names, dense_targets
from foveal.data.scenes import SceneMaker, SceneSettings
from foveal.data.sprites import SpriteSet
from foveal.train.dense import BINS, DenseHeads, WordHead, two_hot_loss

TINY = Path(__file__).parent.parent / "data_files" / "sprites.npz"


def test_two_hot_loss_is_least_at_the_value() -> None:
    values = torch.tensor([[0.31]])
    at = 0.31 * (BINS - 1)
    best = torch.full((1, BINS), -30.0)
    best[0, int(at)], best[0, int(at) + 1] = np.log(1 - at % 1), np.log(at % 1)
    loss, error = two_hot_loss(best, values)
    assert error == pytest.approx(0.0, abs=1e-4)
    far = torch.full((1, BINS), -30.0)
    far[0, -1] = 0.0
    worse, error = two_hot_loss(far, values)
    assert worse > loss and error == pytest.approx(0.69, abs=1e-3)


def test_heads_can_learn_a_scene_by_heart() -> None:
    sprites = SpriteSet.load(TINY)
    index = {n: i for i, n in enumerate(class_names(sprites.names))}
    maker = SceneMaker(sprites, "train", SceneSettings(shape_share=0.5, backgrounds=4))
    target = dense_targets([maker.make(i, kind="distinct") for i in range(4)], index)
    torch.manual_seed(0)
    tokens = torch.nn.functional.one_hot(torch.arange(len(target.thing))).float()
    heads = DenseHeads(tokens.shape[1], len(index))
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss, figures = heads.loss(tokens, target)
        loss.backward()
        optimizer.step()
    assert figures["named"] == figures["empty"] == 1.0
    assert figures["box_error"] < 0.03


def test_word_head_is_right_where_tokens_lie_near_their_names() -> None:
    sprites = SpriteSet.load(TINY)
    index = {n: i for i, n in enumerate(class_names(sprites.names))}
    maker = SceneMaker(sprites, "train", SceneSettings(shape_share=0.5, backgrounds=4))
    target = dense_targets([maker.make(i, kind="distinct") for i in range(4)], index)
    torch.manual_seed(0)
    head = WordHead(64)
    names = torch.randn(len(index) - 1, 64)
    right = torch.cat((head.empty[None], names))[torch.from_numpy(target.thing)].detach() * 3
    loss, figures = head.loss(right, names, target)
    assert figures["worded"] == 1.0
    shuffled, wrong = head.loss(right.roll(1, 1), names, target)
    assert shuffled > loss and wrong["worded"] < 0.5
    shuffled.backward()
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters())
