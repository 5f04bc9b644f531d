"""Which kernel takes a ragged pack, and what it is told. The kernels themselves need a CUDA device."""

from itertools import pairwise

import pytest
import torch

from foveal.nn import attention, varlen
from foveal.nn.attention import attend_packed

CUDA = torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """A machine with these kernels and this compute capability."""

    def make(torchs=True, flash=True, capability=(9, 0)):
        monkeypatch.setattr(varlen, "_torch_varlen", lambda: _torchs if torchs else None)
        monkeypatch.setattr(varlen, "_flash_attn", lambda: _flash if flash else None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return make


@pytest.mark.parametrize(
    ("has", "is_", "wanted"),
    [
        ({}, {}, "torch"),
        ({"torchs": False}, {}, "flash_attn"),
        ({"torchs": False, "flash": False}, {}, None),
        ({"capability": (7, 5)}, {}, None),
        ({}, {"dtype": torch.float32}, None),
        ({}, {"device": torch.device("cpu")}, None),
        ({}, {"device": torch.device("mps")}, None),
        ({}, {"size": 20}, None),
        ({}, {"size": 264}, None),
        ({}, {"size": 80}, "torch"),
        ({}, {"value_size": 8}, None),
    ],
)
def test_choice(machine, has, is_, wanted):
    machine(**has)
    said = {"device": CUDA, "dtype": torch.bfloat16, "size": 16, "value_size": is_.get("size", 16)} | is_
    assert varlen.kernel(**said) == wanted


def test_torchs_kernel_is_found_as_installed():
    from torch.nn.attention.varlen import varlen_attn

    varlen._torch_varlen.cache_clear()
    assert varlen._torch_varlen() is varlen_attn


def _rows(q, k, v, bounds, scale, causal):
    """What the kernels promise, sequence by sequence."""
    out = torch.empty_like(q)
    for a, b in pairwise(bounds.tolist()):
        qs, ks, vs = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
        part = torch.nn.functional.scaled_dot_product_attention(
            qs, ks, vs, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out[a:b] = part[0].transpose(0, 1)
    return out


def _torchs(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    assert cu_q.dtype == torch.int32 and torch.equal(cu_q, cu_k)
    assert max_q == max_k == int(cu_q.diff().max()) and enable_gqa == (q.shape[1] != k.shape[1])
    return _rows(q, k, v, cu_q, scale, {(-1, 0): True, (-1, -1): False}[window_size])


def _flash(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal):
    assert cu_q.dtype == torch.int32 and torch.equal(cu_q, cu_k)
    assert max_q == max_k == int(cu_q.diff().max())
    return _rows(q, k, v, cu_q, softmax_scale, causal)


@pytest.mark.parametrize("which", ["torch", "flash_attn"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [2, 4])
def test_one_call_equals_length_by_length(machine, monkeypatch, which, causal, groups):
    machine()
    q, k, v = (torch.randn(20, heads, 8) for heads in (4, groups, groups))
    starts = [0, 3, 3, 12, 20]
    apart = attend_packed(q, k, v, starts, causal=causal, scale=0.3)
    monkeypatch.setattr(attention, "kernel", lambda *tensors: which)
    torch.testing.assert_close(attend_packed(q, k, v, starts, causal=causal, scale=0.3), apart)
