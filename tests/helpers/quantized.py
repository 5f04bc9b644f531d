"""Quantized checkpoints as other tools write them, from the descriptions of their layouts: slow, plain loops."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


def word(values: list[int], bits: int) -> int:
    """An int32 with the values from its lowest bits up."""
    total = sum(value << bits * place for place, value in enumerate(values))
    return total - (1 << 32) if total >= 1 << 31 else total


def words(rows: list[list[int]], bits: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """Rows of numbers, each packed into int32 from left to right; `places` is the order within one of them."""
    per = 32 // bits
    order = places or tuple(range(per))
    packed = []
    for row in rows:
        full = row + [0] * (-len(row) % per)
        packed.append([word([full[start + p] for p in order], bits) for start in range(0, len(full), per)])
    return torch.tensor(packed, dtype=torch.int32)


def random_layer(outputs: int, inputs: int, group: int, bits: int, g: torch.Generator, *, even: bool = False):
    """Codes [O, I], scales [O, G] and zeros [O, G]."""
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=g)
    scales = (torch.rand(outputs, inputs // group, generator=g) * 0.02 + 0.01).half() * (16 / (1 << bits))
    zeros = torch.randint(0, 1 << bits, (outputs, inputs // group), generator=g)
    return codes, scales, torch.full_like(zeros, 1 << (bits - 1)) if even else zeros


def dense(codes, scales, zeros, groups_of: list[int]) -> torch.Tensor:
    """The weight, number by number."""
    out = torch.empty(codes.shape)
    for i, group in enumerate(groups_of):
        out[:, i] = (codes[:, i] - zeros[:, group]).float() * scales[:, group].float()
    return out


def layer_tensors(kind: str, codes, scales, zeros, groups_of: list[int], bits: int) -> dict[str, torch.Tensor]:
    """One layer in a published layout; `kind` is that of `CONFIGS`."""
    if kind == "awq":
        return {
            "qweight": words(codes.t().tolist(), 4, AWQ_PLACES),
            "qzeros": words(zeros.t().tolist(), 4, AWQ_PLACES),
            "scales": scales.t().contiguous(),
        }
    if kind.startswith("gptq"):
        less = 0 if kind == "gptq_v2" else 1
        stored = [[(z - less) % (1 << bits) for z in row] for row in zeros.t().tolist()]
        return {
            "qweight": words(codes.tolist(), bits).t().contiguous(),
            "qzeros": words(stored, bits),
            "scales": scales.t().contiguous(),
            "g_idx": torch.tensor(groups_of, dtype=torch.int32),
        }
    if kind == "int-quantized":
        return {"weight": (codes - 128).to(torch.int8), "weight_scale": scales}
    found = {
        "weight_packed": words(codes.tolist(), bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(codes.shape),
    }
    if kind == "packed_uneven":
        found["weight_zero_point"] = words(zeros.t().tolist(), bits).t().contiguous()
    if groups_of != sorted(groups_of):
        found["weight_g_idx"] = torch.tensor(groups_of, dtype=torch.int32)
    return found


def config(kind: str, bits: int, group: int) -> dict:
    if kind == "awq":
        return {"quant_method": "awq", "bits": bits, "group_size": group, "version": "gemm", "zero_point": True}
    if kind.startswith("gptq"):
        return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": True, "checkpoint_format": kind}
    form = "int-quantized" if kind == "int-quantized" else "pack-quantized"
    weights = {"num_bits": bits, "type": "int", "symmetric": kind != "packed_uneven", "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def quantize_folder(
    source: Path, target: Path, twin: Path, *, kind: str, bits: int, group: int, turned: bool = False
) -> None:
    """Writes `source` with random quantized language layers to `target`, and the same weights in full to `twin`."""
    g = torch.Generator().manual_seed(11)
    tensors = load_file(source / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    full: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if "layers" not in name or not name.endswith("_proj.weight"):
            stored[name] = full[name] = tensor
            continue
        outputs, inputs = tensor.shape
        size = inputs if kind == "int-quantized" else group
        even = kind in ("packed", "int-quantized")
        codes, scales, zeros = random_layer(outputs, inputs, size, bits, g, even=even)
        groups_of = [i // size for i in range(inputs)]
        if turned:
            shuffled = torch.randperm(inputs, generator=g).tolist()
            groups_of = [groups_of[i] for i in shuffled]
        full[name] = dense(codes, scales, zeros, groups_of)
        layer = name.removesuffix("weight")
        for suffix, part in layer_tensors(kind, codes, scales, zeros, groups_of, bits).items():
            stored[layer + suffix] = part
        if kind.startswith("gptq") and f"{layer}bias" not in tensors:
            stored[f"{layer}bias"] = torch.zeros(outputs)
    published = json.loads((source / "config.json").read_text())
    for folder, content, extra in (
        (target, stored, {"quantization_config": config(kind, bits, group)}),
        (twin, full, {}),
    ):
        folder.mkdir()
        for file in source.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / "config.json").write_text(json.dumps(published | extra))
        save_file(
            {n: t.contiguous().clone() for n, t in content.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
