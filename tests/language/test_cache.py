"""A cache's ragged steps: what each sequence gives is what it would give alone."""

import itertools

import pytest
import torch

from foveal.language.cache import Cache, Store
from foveal.nn.attention import attend_cached


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_ragged_step_is_each_sequence_alone(kind):
    torch.manual_seed(0)
    lengths, new = (5, 0, 300, 17), (1, 20, 3, 1)  # few new tokens, many, none before
    stores, alone = [], []
    for known in lengths:
        k, v = torch.randn(known, 2, 64).to(kind), torch.randn(known, 2, 64).to(kind)
        for made in (stores, alone):
            made.append(Store(1, capacity=known + 4))
            if known:
                made[-1].write(0, k, v)
                made[-1].length = known
    q, k, v = (torch.randn(sum(new), heads, 64).to(kind) for heads in (4, 2, 2))
    starts = [0, 1, 21, 24, 25]
    with torch.inference_mode():
        together = Cache.of(stores).attend(0, q, k, v, starts)
        for i, (a, b) in enumerate(itertools.pairwise(starts)):
            by_itself = Cache.of([alone[i]]).attend(0, q[a:b], k[a:b], v[a:b], [0, b - a])
            assert torch.equal(together[a:b], by_itself)
            stop = lengths[i] + b - a
            for one, other in zip(stores[i].view(0, stop)[0], alone[i].view(0, stop)[0], strict=True):
                assert torch.equal(one, other)
            expected = attend_cached(q[a:b].float(), *(t.float() for t in alone[i].view(0, stop)[0]))
            # Scores of bfloat16 rows are summed in float32; the result is rounded to 2 ** -8 of itself.
            torch.testing.assert_close(together[a:b].float(), expected, atol=2e-2, rtol=1e-2)
