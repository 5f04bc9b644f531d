"""Stretched rotary positions: the two ends of the ramp, what lies between, and transformers' numbers."""

import math

import pytest
import torch

from foveal.nn.rope import frequencies
from foveal.nn.yarn import yarn_frequencies

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "factor", "trained", "fast", "slow"),
    [(64, 40.0, 4096, 32, 1), (16, 4.0, 64, 32, 1), (128, 8.0, 32768, 16, 2), (64, 1.0, 4096, 32, 1)],
)
def test_the_numbers_are_those_of_transformers(size, factor, trained, fast, slow):
    from transformers import DeepseekV2Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = DeepseekV2Config(hidden_size=size, num_attention_heads=1, qk_rope_head_dim=size)
    config.head_dim = size
    config.rope_parameters = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": factor, "beta_fast": fast, "beta_slow": slow,
        "original_max_position_embeddings": trained,
    }  # fmt: skip
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](config, CPU)
    ours = yarn_frequencies(size, 1e4, factor=factor, trained=trained, fast=float(fast), slow=float(slow), device=CPU)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_fast_ones_stay_and_slow_ones_are_stretched():
    plain = frequencies(64, 1e4, CPU)
    found = yarn_frequencies(64, 1e4, factor=8.0, trained=4096, fast=32.0, slow=1.0, device=CPU)
    turns = 4096 * plain / (2 * math.pi)
    assert torch.equal(found[turns > 40], plain[turns > 40])
    torch.testing.assert_close(found[turns < 0.5], plain[turns < 0.5] / 8)
    assert ((found <= plain) & (found >= plain / 8 * 0.9999)).all()
