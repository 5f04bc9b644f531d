"""Arrays of the authors' `.npz` files."""

import numpy as np
import pytest
import torch

from foveal.core.errors import WeightsError
from foveal.weights.arrays import plain, read_npz

BLOCK = "Transformer/encoderblock_0/"


def write(path, arrays):
    np.savez(path, **arrays)
    return path


def test_older_names_become_newer(tmp_path):
    arrays = {
        "opt/target/cls": np.zeros((1, 1, 4), np.float32),
        f"opt/target/{BLOCK}LayerNorm_2/scale": np.ones(4, np.float32),
        f"opt/target/{BLOCK}MlpBlock_3/Dense_0/bias": np.ones(8, np.float32),
        f"opt/target/{BLOCK}MultiHeadDotProductAttention_1/query/bias": np.ones((2, 2), np.float32),
        "opt/target/Transformer/encoder_norm/scale": np.ones(4, np.float32),
    }
    assert set(read_npz(write(tmp_path / "a.npz", arrays))) == {
        "cls",
        "Transformer.encoderblock_0.LayerNorm_1.scale",
        "Transformer.encoderblock_0.MlpBlock_0.Dense_0.bias",
        "Transformer.encoderblock_0.MultiHeadDotProductAttention_0.query.bias",
        "Transformer.encoder_norm.scale",
    }


def test_stacked_layers_are_taken_apart(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = read_npz(write(tmp_path / "a.npz", {"params/img/Transformer/encoderblock/LayerNorm_0/bias": values}))
    assert list(found) == [f"img.Transformer.encoderblock_{n}.LayerNorm_0.bias" for n in range(3)]
    assert found["img.Transformer.encoderblock_2.LayerNorm_0.bias"].tolist() == values[2].tolist()


def test_types(tmp_path):
    values = torch.tensor([1.5, -2.0, 3.25])
    raw = values.bfloat16().view(torch.int16).numpy().view("V2")
    found = read_npz(write(tmp_path / "a.npz", {"a": raw, "b": values.double().numpy()}))
    assert found["a"].dtype == torch.bfloat16
    assert torch.equal(found["a"].float(), values)
    assert found["b"].dtype == torch.float64


def test_ranks():
    assert plain("embedding.kernel", torch.zeros(5, 6, 3, 8)).shape == (8, 3, 5, 6)
    kernel = torch.arange(24.0).view(4, 2, 3)
    assert torch.equal(plain("x.query.kernel", kernel), kernel.view(4, 6))
    assert torch.equal(plain("x.out.kernel", kernel.view(2, 3, 4)), kernel.view(6, 4))
    assert plain("x.query.bias", torch.zeros(2, 3)).shape == (6,)
    assert plain("head.kernel", torch.zeros(2, 3)).shape == (2, 3)
    assert plain("cls", torch.zeros(1, 1, 4)).shape == (1, 1, 4)


def test_what_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no \.npz file of plain arrays"):
        read_npz(write(tmp_path / "a.npz", {"a": np.array([{"b": 1}], dtype=object)}))
    with pytest.raises(WeightsError, match="is of type int64"):
        read_npz(write(tmp_path / "a.npz", {"a": np.arange(3)}))
    with pytest.raises(WeightsError, match="holds no array"):
        read_npz(write(tmp_path / "a.npz", {}))
    with pytest.raises(WeightsError, match="the file mixes two layouts"):
        read_npz(write(tmp_path / "a.npz", {"cls": np.zeros(1, np.float32), "params/cls": np.zeros(1, np.float32)}))
    whole = write(tmp_path / "a.npz", {"a": np.zeros(1000, np.float32)}).read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:2000])
    with pytest.raises(WeightsError, match="fetch it again"):
        read_npz(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"hello")
    with pytest.raises(WeightsError, match="fetch it again"):
        read_npz(tmp_path / "a.npz")
