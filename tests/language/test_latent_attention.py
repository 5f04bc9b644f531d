"""Latent attention: two orders of one sum, alone or packed, at once or step by step; and what the cache holds."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.errors import ConfigError
from foveal.language.cache import Cache
from foveal.language.expert_config import ExpertDecoderConfig, LatentSizes, Yarn
from foveal.language.latent_attention import LatentAttention, latent_rotary, pairs_apart

SIZES = LatentSizes(latent=16, query_latent=None, plain=6, rotary=4, value=5)
CONFIG = ExpertDecoderConfig(width=24, depth=1, heads=3, kv_heads=3, mlp_width=8, vocab=8, latent=SIZES)
YARN = Yarn(factor=4.0, trained=16, weight=0.7, weight_all=0.9)


def made(config: ExpertDecoderConfig = CONFIG, seed: int = 0) -> LatentAttention:
    torch.manual_seed(seed)
    part = LatentAttention(config, 0)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return part.requires_grad_(False)


def by_definition(part: LatentAttention, config: ExpertDecoderConfig, x: torch.Tensor) -> torch.Tensor:
    """One sequence, head by head, from the paper's equations (DeepSeek-V2, eq. 9 to 19)."""
    s = config.latent
    q = part.q(x) if s.query_latent is None else part.q_up(part.q_norm(part.q_down(x)))
    both = part.kv_down(x)
    latent, key = part.kv_norm(both[:, : s.latent]), both[:, s.latent :]
    up = part.kv_up(latent).view(len(x), config.heads, -1)
    q = q.view(len(x), config.heads, -1)
    rotation = latent_rotary(config, torch.arange(len(x))[None])
    key = rotation(pairs_apart(key[:, None]))[:, 0]
    heads = []
    for h in range(config.heads):
        turned = rotation(pairs_apart(q[:, h : h + 1, s.plain :]))[:, 0]
        scores = (q[:, h, : s.plain] @ up[:, h, : s.plain].T + turned @ key.T) * config.scale
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ up[:, h, s.plain :])
    return part.out(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("query_latent", [None, 7])
@pytest.mark.parametrize("yarn", [None, YARN])
def test_packed_is_the_paper(query_latent, yarn):
    config = replace(CONFIG, latent=replace(SIZES, query_latent=query_latent), yarn=yarn)
    part, x = made(config), torch.randn(9, 24)
    starts = [0, 4, 4, 9]
    at = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    out = part(x, latent_rotary(config, at), starts, None)
    torch.testing.assert_close(out[:4], by_definition(part, config, x[:4]), rtol=0, atol=1e-5)
    torch.testing.assert_close(out[4:], by_definition(part, config, x[4:]), rtol=0, atol=1e-5)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 100))
@settings(max_examples=40)
def test_steps_of_any_length_are_one_pass(lengths, seed):
    part, total = made(seed=seed), sum(lengths)
    x = torch.randn(total, 24)
    whole = by_definition(part, CONFIG, x)
    cache, done, parts = Cache(1, depth=1), 0, []
    for length in lengths:
        at = torch.arange(done, done + length)[None]
        parts.append(part(x[done : done + length], latent_rotary(CONFIG, at), [0, length], cache))
        cache.advance([length])
        done += length
    # Worst seen: 1.2e-6.
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_both_forms_are_used_and_agree():
    part, x = made(), torch.randn(30, 24)
    assert part.absorbs(1)
    assert not part.absorbs(30)
    plain, turned = torch.randn(8, 3, 6), torch.randn(8, 3, 4)
    known = torch.cat((part.kv_norm(x[:, :16]), torch.randn(30, 4)), dim=-1)
    one, other = part._absorbed_attention(plain, turned, known), part._expanded_attention(plain, turned, known)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_cache_holds_latents_only():
    cache = Cache(2, depth=1, capacity=8)
    part, at = made(), torch.tensor([[0, 1, 2, 0, 1]])
    part(torch.randn(5, 24), latent_rotary(CONFIG, at), [0, 3, 5], cache)
    for sequence, length in ((0, 3), (1, 2)):
        cache.stores[sequence].length = length
        ((held,),) = cache.stores[sequence].view(0, length)
        assert held.shape == (1, length, SIZES.latent + SIZES.rotary)
        assert held.abs().sum() > 0
        assert cache.stores[sequence].bytes == 4 * 8 * CONFIG.cache_values
    assert CONFIG.cache_values == SIZES.latent + SIZES.rotary


def test_the_norms_of_latents_have_an_eps_of_their_own():
    part = LatentAttention(replace(CONFIG, eps=1e-2, latent=replace(SIZES, query_latent=7)), 0)
    assert part.kv_norm.eps == part.q_norm.eps == 1e-6


def test_stretched_positions_change_scale_and_strength():
    assert replace(CONFIG, yarn=YARN).scale == pytest.approx(10**-0.5 * YARN.magnitude(0.9) ** 2)
    assert replace(CONFIG, yarn=replace(YARN, weight_all=0.0)).scale == 10**-0.5
    rotation = latent_rotary(replace(CONFIG, yarn=YARN), torch.tensor([[0]]))
    assert float(rotation.cos[0, 0, 0]) == pytest.approx(YARN.magnitude(0.7) / YARN.magnitude(0.9))


def test_neighbours_are_set_apart():
    assert pairs_apart(torch.arange(6.0)[None, None]).tolist() == [[[0, 2, 4, 1, 3, 5]]]


def test_gradients_reach_every_weight():
    part = made().requires_grad_(True)
    part(torch.randn(5, 24), latent_rotary(CONFIG, torch.arange(5)[None]), [0, 5], None).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": None, "heads": 5}, "5 query heads must divide the width 24"),
        ({"latent": None, "kv_heads": 2}, "share 2 key heads"),
        ({"latent": None, "yarn": YARN}, "belong to latent attention"),
        ({"latent": None, "heads": 24, "kv_heads": 24}, "rotation turns pairs"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)


def test_odd_rotary_parts_are_refused():
    with pytest.raises(ConfigError, match="rotary part is 3 wide"):
        replace(SIZES, rotary=3)


def test_latent_attention_needs_its_sizes():
    with pytest.raises(ConfigError, match="needs its sizes"):
        LatentAttention(replace(CONFIG, latent=None), 0)
