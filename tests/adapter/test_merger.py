import pytest
import torch
import torch.nn.functional as F

from foveal.adapter.merger import Merger
from foveal.adapter.stacked import StackedMerger
from foveal.nn.norm import LayerNorm, RMSNorm


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_patches_are_normalised_then_joined(norm):
    merger = Merger(6, 5, 2, norm=norm)
    x = torch.randn(8, 6)
    joined = torch.stack([torch.cat([merger.norm(p[None])[0] for p in x[4 * i : 4 * i + 4]]) for i in range(2)])
    expected = merger.down(F.gelu(merger.up(joined)))
    torch.testing.assert_close(merger(x), expected, rtol=0, atol=1e-6)


def test_joined_then_normalised():
    merger = Merger(6, 5, 2, join_first=True)
    x = torch.randn(8, 6) * torch.tensor([1.0, 50.0]).repeat(4)[:, None]
    joined = F.layer_norm(x.view(2, 24), (24,), eps=1e-6)
    expected = merger.down(F.gelu(merger.up(joined)))
    torch.testing.assert_close(merger(x), expected, rtol=0, atol=1e-6)
    patchwise = Merger(6, 5, 2)
    patchwise.up, patchwise.down = merger.up, merger.down
    assert (patchwise(x) - expected).abs().max() > 1e-2


def test_every_depth_has_its_own_merger():
    merger = StackedMerger(6, 5, 2, 2)
    x, one, two = torch.randn(3, 8, 6)
    last, inner = merger(x, [one, two])
    assert torch.equal(last, merger.last(x))
    assert torch.equal(inner[0], merger.inner[0](one)) and torch.equal(inner[1], merger.inner[1](two))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        merger(x, [one])
