"""Attention pooling beside torch's own multi-head attention and transformers' head."""

import pytest
import torch
import torch.nn.functional as F

from foveal.core.errors import InputError
from foveal.vision.config import probe_pool_parameters
from foveal.vision.pooling import ProbePool

WIDTH, HEADS, MLP = 24, 3, 40


@pytest.fixture(scope="module")
def pool():
    torch.manual_seed(0)
    made = ProbePool(WIDTH, HEADS, MLP, F.gelu, 1e-6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.eval().requires_grad_(False)


def test_transformers_head(pool):
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    config = SiglipVisionConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=MLP, hidden_act="gelu", layer_norm_eps=1e-6
    )
    theirs = SiglipMultiheadAttentionPoolingHead(config).eval()
    names = {
        "probe": "probe",
        "qkv.weight": "attention.in_proj_weight",
        "qkv.bias": "attention.in_proj_bias",
        "out.weight": "attention.out_proj.weight",
        "out.bias": "attention.out_proj.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
        "mlp.up.weight": "mlp.fc1.weight",
        "mlp.up.bias": "mlp.fc1.bias",
        "mlp.down.weight": "mlp.fc2.weight",
        "mlp.down.bias": "mlp.fc2.bias",
    }
    theirs.load_state_dict({names[name]: value for name, value in pool.state_dict().items()}, strict=True)
    lengths = [4, 4, 9, 1, 6]
    pictures = [torch.randn(n, WIDTH) for n in lengths]
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    ours = pool(torch.cat(pictures), starts)
    for row, picture in zip(ours, pictures, strict=True):
        with torch.no_grad():  # worst seen: 2.4e-6, on values up to 8
            torch.testing.assert_close(row, theirs(picture[None])[0], rtol=0, atol=1e-5)


def test_alone_is_as_in_a_pack(pool):
    pictures = [torch.randn(n, WIDTH) for n in (5, 5, 2)]
    together = pool(torch.cat(pictures), [0, 5, 10, 12])
    for row, picture in zip(together, pictures, strict=True):
        torch.testing.assert_close(row, pool(picture, [0, len(picture)])[0], rtol=0, atol=1e-5)  # worst seen: 2.4e-6


def test_no_pictures_and_no_patches(pool):
    assert pool(torch.zeros(0, WIDTH), [0]).shape == (0, WIDTH)
    with pytest.raises(InputError, match="picture 1 has no patch"):
        pool(torch.zeros(3, WIDTH), [0, 3, 3])


def test_parameters(pool):
    assert sum(p.numel() for p in pool.parameters()) == probe_pool_parameters(WIDTH, MLP)
