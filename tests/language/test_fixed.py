"""A step of fixed shapes: its scores are those of an ordinary one, and it touches nobody's memory."""

import pytest
import torch

from foveal.core.errors import FovealError
from foveal.language.attention import NormedAttention
from foveal.language.cache import Cache, Store
from foveal.language.config import DecoderConfig
from foveal.language.decoder import Decoder
from foveal.language.fixed import FixedCache, FixedStep, has_fixed_shapes
from foveal.language.pages import IDLE, ZEROS, PagedStore, Pages
from foveal.nn.mlp import GatedMLP
from foveal.nn.moe import MoE
from foveal.nn.routing import Routing

SIZE = 4
CONFIG = DecoderConfig(
    width=24, depth=2, heads=4, kv_heads=2, head_dim=8, mlp_width=40, vocab=50, section=(1, 1, 2), tied=True
)


def decoder(**parts):
    torch.manual_seed(0)
    return Decoder(CONFIG, **parts).eval().requires_grad_(False)


def positions(start, count):
    return (torch.arange(start, start + count) + torch.tensor([[0], [3], [5]])).long()


@pytest.fixture(params=["plain", "normed"])
def network(request):
    return decoder(attention=NormedAttention) if request.param == "normed" else decoder()


def grown(network, pages, lengths):
    """Sequences of random tokens in plain stores, and the same in pages."""
    plain = Cache.of(Store(CONFIG.depth) for _ in lengths)
    paged = Cache.of(PagedStore(pages, capacity=8) for _ in lengths)
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    x = network.embed(torch.randint(0, CONFIG.vocab, (starts[-1],)))
    places = torch.cat([positions(0, n) for n in lengths], dim=1)
    for cache in (plain, paged):
        network(x, places, starts, cache=cache)
    return plain, paged


def loaded(step, cache, tokens):
    """The step's rows for the next tokens of a cache, which has room for them then."""
    rows = []
    for token, store in zip(tokens, cache.stores, strict=True):
        store.reach(store.length + 1)
        rows.append((token, store.length, positions(store.length, 1)[:, 0].tolist(), store.numbers))
    step.load(rows)


@pytest.mark.parametrize("lengths", [[1], [3, 4], [1, 7, 12], [5, 13, 2, 8, 11]])
def test_scores_are_those_of_an_ordinary_step(network, lengths):
    """Whatever lies in pages that no row has: here what is no number."""
    pages = Pages(40, SIZE, CONFIG.depth)
    plain, paged = grown(network, pages, lengths)
    mine = [number for store in paged.stores for number in store.numbers]
    free = [row for page in range(IDLE, 42) if page not in mine for row in range(page * SIZE, page * SIZE + SIZE)]
    for layer in range(CONFIG.depth):
        for tensor in pages.tensors(layer):
            tensor[free] = torch.nan
    # Behind the last token of a page, too.
    for store in paged.stores:
        last = store.numbers[-1] * SIZE
        for layer in range(CONFIG.depth):
            for tensor in pages.tensors(layer):
                tensor[last + (store.length - 1) % SIZE + 1 : last + SIZE] = torch.nan
    step = FixedStep(network, pages, torch.full((8, CONFIG.vocab), torch.nan), rows=8, reach=4, axes=3)
    for _ in range(3):
        tokens = torch.randint(0, CONFIG.vocab, (len(lengths),))
        places = torch.cat([positions(n, 1) for n in plain.lengths], dim=1)
        hidden = network(network.embed(tokens), places, range(len(lengths) + 1), cache=plain)
        expected = network.logits(hidden)
        loaded(step, paged, tokens.tolist())
        step.compute()
        # Worst seen: 5.7e-6, on values up to 30.
        torch.testing.assert_close(step.scores[: len(lengths)], expected, rtol=0, atol=2e-5)
        before = step.scores.clone()
        step.compute()  # changes nothing
        assert torch.equal(step.scores[: len(lengths)], before[: len(lengths)])
        for store in paged.stores:
            store.length += 1
    for mine, other in zip(plain.stores, paged.stores, strict=True):
        for a, b in zip(mine.view(0, mine.length), other.view(0, other.length), strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


def test_a_step_writes_its_own_rows_and_the_idle_page_only(network):
    pages = Pages(12, SIZE, CONFIG.depth)
    _, paged = grown(network, pages, [6, 3, 8])
    step = FixedStep(network, pages, torch.zeros(8, CONFIG.vocab), rows=8, reach=4, axes=3)
    loaded(step, paged, [1, 2, 3])
    before = [[t.clone() for t in pages.tensors(layer)] for layer in range(CONFIG.depth)]
    step.compute()
    new = {store.numbers[store.length // SIZE] * SIZE + store.length % SIZE for store in paged.stores}
    for layer in range(CONFIG.depth):
        for old, tensor in zip(before[layer], pages.tensors(layer), strict=True):
            changed = {int(row) for row in (old != tensor).flatten(1).any(1).nonzero()}
            assert changed == new | {IDLE * SIZE}
            assert not tensor[ZEROS * SIZE : (ZEROS + 1) * SIZE].any()


def test_rows_that_left_are_idle(network):
    """What a row of an earlier batch was does not matter to a later one."""
    pages = Pages(12, SIZE, CONFIG.depth)
    _, paged = grown(network, pages, [6, 3, 8])
    step = FixedStep(network, pages, torch.zeros(4, CONFIG.vocab), rows=4, reach=4, axes=3)
    loaded(step, paged, [1, 2, 3])
    step.compute()
    alone = step.scores[2].clone()
    last = Cache.of(paged.stores[2:])
    loaded(step, last, [3])
    held = [[t[paged.stores[0].numbers[0] * SIZE :][:SIZE].clone() for t in pages.tensors(0)]]
    step.compute()
    torch.testing.assert_close(step.scores[0], alone, rtol=0, atol=2e-5)
    assert all(
        torch.equal(a, t[paged.stores[0].numbers[0] * SIZE :][:SIZE])
        for a, t in zip(held[0], pages.tensors(0), strict=True)
    )


def test_what_has_fixed_shapes():
    assert has_fixed_shapes(decoder())
    routing = Routing(experts=4, chosen=2)
    mixed = decoder(mlp=lambda c, i: MoE(c.width, 8, routing) if i else GatedMLP(c.width, c.mlp_width))
    assert not has_fixed_shapes(mixed)

    class Strange(torch.nn.Module):
        def __init__(self, config, layer):
            super().__init__()

    assert not has_fixed_shapes(decoder(attention=Strange))
    cache = FixedCache(Pages(1, SIZE, 1), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(FovealError, match="no steps of fixed shape"):
        cache.write(0, 0, torch.zeros(1, 2, 8))
