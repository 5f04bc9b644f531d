"""Folders with quantized layers: those of other tools open with their numbers, ours open again as they were."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveal.core.errors import ConfigError, WeightsError
from foveal.engine.load import load
from foveal.nn.quantized_linear import QuantizedLinear
from foveal.weights.quantized import layout_of, pack, unpack
from tests.helpers import checkpoints
from tests.helpers.quantized import quantize_folder, words

ASKED = [{"role": "user", "content": "How many circles are there, and where?"}]
KINDS = [
    ("awq", 4, 16, False),
    ("gptq", 4, 16, False),
    ("gptq", 4, 16, True),
    ("gptq_v2", 8, 24, True),
    ("packed", 4, 16, False),
    ("packed", 8, 48, False),
    ("packed_uneven", 4, 16, True),
    ("int-quantized", 8, 48, False),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoints.write(checkpoints.oracle(seed=3, tied=True), tmp_path_factory.mktemp("full"))


def logits(folder):
    model = load(folder, dtype="float32", device="cpu")
    with torch.inference_mode():
        return model, model.forward(model.process(ASKED)).logits


@pytest.mark.parametrize(("kind", "bits", "group", "turned"), KINDS)
def test_folders_of_other_tools_open_with_their_numbers(source, tmp_path, kind, bits, group, turned):
    quantize_folder(source, tmp_path / "q", tmp_path / "full", kind=kind, bits=bits, group=group, turned=turned)
    model, found = logits(tmp_path / "q")
    layers = [m for m in model.network.language.modules() if isinstance(m, QuantizedLinear)]
    # Queries, keys and values are joined where their inputs lie in one order.
    assert len(layers) == 3 * (7 if turned else 5) and {layer.bits for layer in layers} == {bits}
    _, wanted = logits(tmp_path / "full")
    # Whole rows of 48 and 96 inputs are rounded to 8 bits by torch's operator or the kernel; the rest is exact.
    rounded = any(layer.how != "dense" for layer in layers)
    assert (found - wanted).abs().max() < (0.05 if rounded else 2e-5) * wanted.abs().max()


def test_packing_is_the_plain_one():
    rows = torch.randint(0, 16, (5, 19), dtype=torch.uint8)
    assert torch.equal(pack(rows, 4), words(rows.tolist(), 4))
    assert torch.equal(unpack(pack(rows, 4), 4)[:, :19], rows)
    bytes_ = torch.randint(0, 256, (5, 19), dtype=torch.uint8)
    assert torch.equal(pack(bytes_, 8), words(bytes_.tolist(), 8))
    assert torch.equal(unpack(pack(bytes_, 8), 8)[:, :19], bytes_)


def changed(source, tmp_path, change):
    """A GPTQ folder after `change` of its tensors."""
    quantize_folder(source, tmp_path / "q", tmp_path / "full", kind="gptq", bits=4, group=16)
    file = tmp_path / "q" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path / "q"


PARTS = ("qweight", "qzeros", "scales")


def gate(tensors) -> str:
    return next(name.removesuffix("qweight") for name in tensors if "layers.0.mlp.gate_proj.qweight" in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(gate(t) + "scales"), "lacks tensors of quantized layers"),
        (lambda t: t.update({gate(t) + "qweight": torch.zeros(6, 88, dtype=torch.int32)}), "do not fit"),
        (lambda t: t.update({gate(t) + "g_idx": torch.zeros(48, dtype=torch.int32)}), "every group 16 inputs"),
        (lambda t: t.update({gate(t) + "bias": torch.ones(96)}), "gate_proj.bias"),
        (lambda t: t.update({f"lm_heads.{s}": t[gate(t) + s].clone() for s in PARTS}), "no weights of linear"),
        (lambda t: t.pop(next(n for n in t if n.endswith("layers.1.input_layernorm.weight"))), "are missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(source, tmp_path, change, message):
    with pytest.raises(WeightsError, match=message):
        load(changed(source, tmp_path, change), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"quant_method": "fp8"}, "quantized by 'fp8'"),
        ({"quant_method": "awq", "bits": 3}, "awq with 3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "layout 'gemv'"),
        ({"quant_method": "gptq", "bits": 2}, "gptq with 2 bits"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "names no weights"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "float-quantized",
        ),
        ("int4", "an object is expected"),
    ],
)
def test_forms_that_are_not_read_are_named(stated, message):
    with pytest.raises(ConfigError, match=message):
        layout_of({"quantization_config": stated})
    assert layout_of({}) is None


def test_a_quantized_folder_says_so_only_in_its_configuration(source, tmp_path):
    quantize_folder(source, tmp_path / "q", tmp_path / "full", kind="awq", bits=4, group=16)
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="qweight"):
        load(tmp_path / "q", device="cpu")
