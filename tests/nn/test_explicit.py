"""Derivatives written by hand beside autograd's: attention, rotation, RMS norm."""

import pytest
import torch
import torch.nn.functional as F

from foveal.nn import explicit
from foveal.nn.attention import attend_packed
from foveal.nn.explicit import attend_explicit
from foveal.nn.norm import RMSNorm
from foveal.nn.rope import Rotation, text_rotation


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kept", [0, 2**26])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_and_its_gradients(monkeypatch, causal: bool, kept: int, groups: int) -> None:
    """In one block, or in several whose shares are kept or computed again."""
    monkeypatch.setattr(explicit, "KEPT_BYTES", kept)
    for length in (1, 5, 150):  # blocks have 64 queries at least
        monkeypatch.setattr(explicit, "BLOCK_VALUES", 1 if length == 150 else 2**20)
        q, k, v = made(2, 4, length, 6), made(2, groups, length, 6, seed=1), made(2, groups, length, 3, seed=2)
        above = made(2, 4, length, 3, seed=3).detach()
        ours = attend_explicit(q, k, v, causal=causal, scale=0.3)
        theirs = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=True)
        assert torch.allclose(ours, theirs, atol=1e-12)
        for mine, other in zip(
            torch.autograd.grad(ours, (q, k, v), above), torch.autograd.grad(theirs, (q, k, v), above), strict=True
        ):
            # Worst seen: 3e-16; blocks add up in the type itself, which is float64 here.
            assert torch.allclose(mine, other, atol=1e-12)


def test_in_bfloat16_packs_are_trained_with_it(monkeypatch) -> None:
    asked = []

    def noted(*arguments, **settings):
        asked.append(arguments[0].shape)
        return attend_explicit(*arguments, **settings)

    monkeypatch.setattr("foveal.nn.attention.attend_explicit", noted)
    for kind, causal, expected in (
        (torch.bfloat16, True, [(1, 4, 1030, 8), (2, 4, 3, 8)]),
        (torch.bfloat16, False, [(2, 4, 3, 8)]),
        (torch.float32, True, []),
    ):
        asked.clear()
        q, k, v = (made(1036, heads, 8, seed=heads).detach().to(kind).requires_grad_() for heads in (4, 2, 2))
        out = attend_packed(q, k, v, [0, 1030, 1033, 1036], causal=causal)
        assert asked == expected
        out.sum().backward()
        exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
        whole = attend_packed(*exact, [0, 1030, 1033, 1036], causal=causal)
        whole.sum().backward()
        for mine, other in zip((q, k, v), exact, strict=True):
            # Worst seen: 0.4 % in bfloat16, 4e-7 in float32, of the largest gradient.
            assert mine.grad is not None
            off = (mine.grad.double() - other.grad).abs().max() / other.grad.abs().max()
            assert off < (0.02 if kind == torch.bfloat16 else 1e-5)


def test_a_pack_of_nothing() -> None:
    q, k, v = made(0, 4, 8), made(0, 2, 8), made(0, 2, 5)
    assert attend_packed(q, k, v, [0, 0], causal=True).shape == (0, 4, 5)


def test_rotation_and_its_gradient() -> None:
    angles = torch.arange(7)[None].repeat(3, 1)
    found = text_rotation(angles, head_dim=12, theta=100.0, section=(2, 2, 2))
    rotation = Rotation(found.cos.double(), found.sin.double())
    x, above = made(7, 3, 12), made(7, 3, 12, seed=1).detach()
    turned = rotation(x)
    with torch.no_grad():
        assert torch.allclose(turned, rotation(x), atol=1e-15)  # without a gradient another way is taken
    # A rotation is orthogonal: its derivative is the rotation by the opposite angle.
    back = Rotation(rotation.cos, -rotation.sin)(above)
    assert torch.allclose(torch.autograd.grad(turned, x, above)[0], back, atol=1e-15)
    assert torch.autograd.gradcheck(rotation, (x,))


def test_rms_norm_and_its_gradients() -> None:
    norm = RMSNorm(5, 1e-6).double()
    norm.weight.data = made(5, seed=1).detach()
    x, above = made(2, 3, 5), made(2, 3, 5, seed=2).detach()
    theirs = F.rms_norm(x, (5,), norm.weight, 1e-6)
    assert torch.allclose(norm(x), theirs, atol=1e-15)
    for mine, other in zip(
        torch.autograd.grad(norm(x), (x, norm.weight), above), torch.autograd.grad(theirs, (x, norm.weight), above),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(mine, other, atol=1e-14)
