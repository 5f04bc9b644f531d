"""Two towers and how their vectors are compared."""

import numpy as np
import pytest
import torch

from foveal.families.dual import DualEncoder
from foveal.language.text_config import TextConfig
from foveal.language.text_encoder import TextEncoder
from foveal.nn.keep import Keep
from foveal.vision.class_token import ClassTokenTower
from foveal.vision.config import PlainConfig
from foveal.vision.plain import PlainTower

TEXT = TextConfig(vocab=30, width=16, depth=1, heads=2, mlp_width=20, context=8, embed=12, causal=True)
VISION = PlainConfig(
    width=16, depth=2, heads=2, mlp_width=20, patch=2, side=3, class_token=True, patch_bias=False, norm_before=True
)


def dual(**options: object) -> DualEncoder:
    torch.manual_seed(0)
    made = DualEncoder(ClassTokenTower(PlainTower(VISION), 12), TextEncoder(TEXT), **options).eval()
    return made.requires_grad_(False)


def pictures(count: int) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(9 * count, 12, generator=generator), np.tile([1, 3, 3], (count, 1))


def test_vectors_have_length_one_and_pictures_do_not_see_each_other():
    """Measured: 1.2e-7."""
    model = dual()
    patches, grids = pictures(4)
    together = model.embed_images(patches, grids)
    assert together.shape == (4, 12)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
    alone = torch.cat([model.embed_images(patches[9 * i : 9 * i + 9], grids[:1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("bias", [True, False])
def test_similarity_is_the_scaled_cosine(shape: tuple[int, ...], bias: bool):
    model = dual(bias=bias, scalar_shape=shape, first_scale=1.5, first_bias=-2.0)
    images = model.embed_images(*pictures(3))
    texts = model.embed_text(np.array([1, 2, 3, 4, 5]), np.array([0, 2, 5]))
    expected = np.exp(1.5) * images.numpy() @ texts.numpy().T - 2.0 * bias
    np.testing.assert_allclose(model.similarity(images, texts), expected, atol=1e-5)
    forward = model(*pictures(3), np.array([1, 2, 3, 4, 5]), np.array([0, 2, 5]))
    assert torch.equal(forward[0], images)
    assert torch.equal(forward[1], texts)


def test_results_can_be_kept():
    model = dual()
    keep = Keep(("vision.blocks.1", "image"))
    model.embed_images(*pictures(2), keep)
    kept = keep.finish()
    assert kept["vision.blocks.1"].shape == (20, 16)
    assert kept["image"].shape == (2, 12)
