"""One question gets one answer: alone, batched, packed, cached and prefilled in chunks."""

import numpy as np
import pytest
import torch

import foveal
from tests.helpers import layouts


def logits_by_step(vlm, batch, ids):
    """Scores before each of `ids`, from a cache, one token at a time."""
    cache = vlm.network.language.new_cache(1)
    rows = [vlm.network(batch, cache=cache, at=batch.starts[1:] - 1).logits[0]]
    for token in ids[:-1]:
        place = cache.lengths[0] + int(batch.deltas[0])
        x = vlm.network.language.embed(torch.tensor([token]))
        hidden = vlm.network.language(x, torch.tensor([[place]] * 3), [0, 1], cache=cache)
        rows.append(vlm.network.language.logits(hidden)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("group", range(5))
def test_alone_equals_batched_equals_chunked(vlm, group):
    """200 random cases together with `test_many_cases`, 8 tokens each."""
    compare(vlm, group, count=4)


@pytest.mark.slow
@pytest.mark.parametrize("group", range(5, 50))
def test_many_cases(vlm, group):
    compare(vlm, group, count=4)


def compare(vlm, group, count):
    rng = np.random.default_rng(group)
    conversations = [layouts.conversation(rng, media=2) for _ in range(count)]
    alone = [vlm.process(c) for c in conversations]
    packed = foveal.join(alone)
    whole = vlm.forward(packed).logits
    for start, stop, batch in zip(packed.starts, packed.starts[1:], alone, strict=False):
        # Worst seen: 6.9e-6 (Qwen2.5-VL), on values up to 5.
        torch.testing.assert_close(whole[start:stop], vlm.forward(batch).logits, rtol=0, atol=1e-5)
    together = vlm.generate(packed, max_tokens=8, temperature=0, ignore_eos=True)
    chunk = int(rng.integers(1, 40))
    assert vlm.generate(packed, max_tokens=8, temperature=0, ignore_eos=True, chunk=chunk) == together
    for batch, ids in zip(alone, together, strict=True):
        assert vlm.generate(batch, max_tokens=8, temperature=0, ignore_eos=True) == [ids]


def test_cached_steps_equal_one_pass(vlm):
    rng = np.random.default_rng(3)
    batch = vlm.process(layouts.conversation(rng))
    ids = vlm.generate(batch, max_tokens=12, temperature=0, ignore_eos=True)[0]
    stepped = logits_by_step(vlm, batch, ids)
    longer = foveal.Packed(
        **{
            **vars(batch),
            "tokens": np.concatenate([batch.tokens, ids[:-1]]),
            "positions": np.concatenate(
                [batch.positions, np.tile(len(batch.tokens) + np.arange(len(ids) - 1) + batch.deltas[0], (3, 1))],
                axis=1,
            ),
            "starts": batch.starts + np.array([0, len(ids) - 1]),
        }
    )
    whole = vlm.forward(longer).logits[len(batch.tokens) - 1 :]
    torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-5)


def test_sampling_does_not_depend_on_neighbours(vlm):
    rng = np.random.default_rng(5)
    alone = [vlm.process(layouts.conversation(rng, media=1)) for _ in range(3)]
    options = {"max_tokens": 10, "temperature": 1.0, "seed": 11, "ignore_eos": True}
    together = vlm.generate(foveal.join(alone), **options)
    assert together == [vlm.generate(batch, **options)[0] for batch in alone]


def test_vision_pads_are_never_said(vlm):
    batch = vlm.process("What is in this picture?")
    said = {i for seed in range(8) for i in vlm.generate(batch, max_tokens=40, temperature=5.0, seed=seed)[0]}
    pads = {vlm.processor.tokenizer.special(f"<|{kind}_pad|>") for kind in ("image", "video", "vision")}
    assert len(said) > 150
    assert not said & pads
