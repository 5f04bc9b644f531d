"""The decoder: alone, packed, cached and in pieces give the same hidden states."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.errors import ConfigError
from foveal.language.cache import Cache
from foveal.language.decoder import Decoder, DecoderConfig

CONFIG = DecoderConfig(
    width=32, depth=2, heads=4, kv_heads=2, head_dim=16, mlp_width=48, vocab=50, section=(2, 3, 3), tied=True
)


def decoder():
    torch.manual_seed(0)
    made = Decoder(CONFIG)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


MODEL = decoder()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.data())
def test_cached_pieces_equal_the_whole(lengths, data):
    torch.manual_seed(len(lengths))
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    x = torch.randn(starts[-1], 32)
    positions = torch.randint(0, 40, (3, starts[-1]))
    whole = MODEL(x, positions, starts)
    cache = MODEL.new_cache(len(lengths), capacity=2)
    done = [0] * len(lengths)
    parts = [[] for _ in lengths]
    while done != lengths:
        take = [data.draw(st.integers(0, length - d)) for length, d in zip(lengths, done, strict=True)]
        rows = [
            i for s, (d, n) in enumerate(zip(done, take, strict=True)) for i in range(starts[s] + d, starts[s] + d + n)
        ]
        if not rows:
            take = [length - d for length, d in zip(lengths, done, strict=True)]
            rows = [i for s, d in enumerate(done) for i in range(starts[s] + d, starts[s + 1])]
        bounds = [0]
        for n in take:
            bounds.append(bounds[-1] + n)
        out = MODEL(x[rows], positions[:, rows], bounds, cache=cache)
        for s, n in enumerate(take):
            parts[s].append(out[bounds[s] : bounds[s + 1]])
            done[s] += n
    assert cache.lengths == lengths
    joined = torch.cat([torch.cat(p) for p in parts])
    torch.testing.assert_close(joined, whole, rtol=0, atol=1e-5)


def test_dropping_sequences_keeps_the_others():
    torch.manual_seed(1)
    x, positions = torch.randn(9, 32), torch.arange(9).expand(3, -1)
    cache = MODEL.new_cache(3)
    MODEL(x, positions, [0, 2, 5, 9], cache=cache)
    cache = Cache.of([cache.stores[2], cache.stores[0]])
    assert cache.lengths == [4, 2]
    new = torch.randn(2, 32)
    out = MODEL(new, torch.tensor([[9, 2]] * 3), [0, 1, 2], cache=cache)
    whole = MODEL(torch.cat((x[:2], new[1:])), torch.arange(3).expand(3, -1), [0, 3])
    torch.testing.assert_close(out[1:], whole[2:], rtol=0, atol=1e-5)


def test_tied_head_is_the_embedding():
    hidden = torch.randn(3, 32)
    assert MODEL.head is None
    torch.testing.assert_close(MODEL.logits(hidden), hidden @ MODEL.embed.weight.T)


@pytest.mark.parametrize(
    ("change", "message"), [({"kv_heads": 3}, "cannot share 3 key heads"), ({"section": (1, 1, 1)}, "sums to 3")]
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**{**vars(CONFIG), **change})
