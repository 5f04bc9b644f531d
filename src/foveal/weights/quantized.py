"""Published layouts of quantized weights: what a folder says of them, and their tensors to codes and back.

    layout           tensors of a layer X instead of X.weight [O, I]                    an int32 holds
    awq              qweight [I, O / 8], qzeros [G, O / 8], scales [G, O]               8 outputs, in AWQ's order
    gptq             qweight [I / n, O], qzeros [G, O / n], scales [G, O], g_idx [I]    n = 32 / bits inputs
    pack-quantized   weight_packed [O, I / n], weight_scale [O, G], weight_shape [2],   n inputs
                     weight_zero_point [O / n, G], weight_g_idx [I]
    int-quantized    weight [O, I], weight_scale [O, 1]                                 (signed int8)

Packed codes begin in the lowest bits. AWQ packs outputs 0 2 4 6 1 3 5 7 of every 8 in that order. GPTQ stores zeros
less 1 unless `checkpoint_format` is `gptq_v2`. The last two are layouts of compressed-tensors; written is
pack-quantized, symmetric, which vLLM reads too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.errors import ConfigError, WeightsError
from foveal.nn.quantized import Codes
from foveal.weights.checkpoint import Checkpoint, TensorInfo, some

KEY = "quantization_config"
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Outputs of every 8, from the lowest bits up."""

_SUFFIXES = {
    "awq": ("qweight", "qzeros", "scales"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "pack-quantized": ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    "int-quantized": ("weight", "weight_scale", "weight_zero_point"),
}
_NEEDED = {
    "awq": ("qweight", "qzeros", "scales"),
    "gptq": ("qweight", "qzeros", "scales"),
    "pack-quantized": ("weight_packed", "weight_scale", "weight_shape"),
    "int-quantized": ("weight", "weight_scale"),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the weights of a folder are quantized.

    Attributes:
        name: "awq", "gptq", "pack-quantized" or "int-quantized".
        bits: 4 or 8.
        symmetric: no zeros are stored (compressed-tensors).
        less_one: zeros are stored less 1 (GPTQ's first format).
    """

    name: str
    bits: int
    symmetric: bool = True
    less_one: bool = False


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A quantized layer of a checkpoint: the published name of its weight, and its tensors by suffix."""

    weight: str
    parts: Mapping[str, TensorInfo]


def layout_of(published: Mapping[str, Any], where: str = "config.json") -> Layout | None:
    """What config.json says of quantized weights; None when they are not quantized.

    Raises `ConfigError` for a form that is not read.
    """
    stated = published.get(KEY)
    if stated is None:
        return None
    if not isinstance(stated, Mapping):
        raise ConfigError(f"{where}: {KEY} is {stated!r}; an object is expected.")
    method = stated.get("quant_method")
    if method in ("awq", "gptq"):
        bits = stated.get("bits")
        if not isinstance(bits, int) or bits not in ((4,) if method == "awq" else (4, 8)):
            raise ConfigError(
                f"{where}: {method} with {bits!r} bits is not read; 4 is{', or 8' if method == 'gptq' else ''}."
            )
        if method == "awq":
            version = str(stated.get("version", "gemm")).lower()
            if version != "gemm":
                raise ConfigError(f"{where}: AWQ in the layout {version!r} is not read; 'gemm' is.")
        return Layout(name=method, bits=bits, less_one=stated.get("checkpoint_format", "gptq") == "gptq")
    if method == "compressed-tensors":
        return _compressed(stated, where)
    raise ConfigError(f"{where}: weights quantized by {method!r} are not read; awq, gptq and compressed-tensors are.")


def _compressed(stated: Mapping[str, Any], where: str) -> Layout:
    groups = stated.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [s.get("weights") if isinstance(s, Mapping) else None for s in schemes]
    forms = {str(s.get("format") or stated.get("format")) for s in schemes if isinstance(s, Mapping)}
    if not weights or any(not isinstance(w, Mapping) for w in weights):
        raise ConfigError(f"{where}: {KEY} names no weights in its config_groups; fetch the file again.")
    kinds = {(w.get("num_bits"), w.get("type", "int"), bool(w.get("symmetric", True))) for w in weights if w}
    if len(kinds) > 1 or len(forms) > 1:
        raise ConfigError(f"{where}: {KEY} mixes {len(kinds)} kinds of weights and {len(forms)} formats; one is read.")
    ((bits, kind, symmetric),), (form,) = kinds, forms
    if form not in ("pack-quantized", "int-quantized") or kind != "int" or bits not in (4, 8):
        raise ConfigError(
            f"{where}: compressed-tensors of format {form!r}, {bits!r} bits of type {kind!r}, is not read; "
            "pack-quantized and int-quantized integers of 4 or 8 bits are."
        )
    if form == "int-quantized" and bits != 8:
        raise ConfigError(f"{where}: int-quantized weights of {bits} bits are not read; 8 are.")
    return Layout(name=form, bits=bits, symmetric=symmetric)


def split(checkpoint: Checkpoint, layout: Layout) -> tuple[Checkpoint, list[Stored]]:
    """The tensors that are stored as ever, and the quantized layers.

    Raises `WeightsError` for a layer some of whose tensors are missing.
    """
    suffixes, needed = _SUFFIXES[layout.name], _NEEDED[layout.name]
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in checkpoint.tensors.items():
        layer, _, suffix = name.rpartition(".")
        if suffix in suffixes and (suffix != "weight" or info.dtype == "I8"):
            found.setdefault(layer, {})[suffix] = info
    incomplete = [f"{layer}.{suffix}" for layer, parts in found.items() for suffix in needed if suffix not in parts]
    if incomplete:
        raise WeightsError(
            f"{checkpoint.folder} lacks tensors of quantized layers ({some(incomplete)}); fetch it again."
        )
    taken = {info.name for parts in found.values() for info in parts.values()}
    plain = {name: info for name, info in checkpoint.tensors.items() if name not in taken}
    layers = [Stored(weight=f"{layer}.weight", parts=parts) for layer, parts in found.items()]
    return Checkpoint(folder=checkpoint.folder, tensors=plain), layers


def shape_of(stored: Stored, layout: Layout) -> tuple[int, int]:
    """Outputs and inputs of a quantized layer, as far as headers tell (compressed-tensors may pad inputs)."""
    per = 32 // layout.bits
    if layout.name == "awq":
        rows, columns = stored.parts["qweight"].shape
        return columns * per, rows
    if layout.name == "gptq":
        rows, columns = stored.parts["qweight"].shape
        return columns, rows * per
    if layout.name == "int-quantized":
        rows, columns = stored.parts["weight"].shape
        return rows, columns
    rows, columns = stored.parts["weight_packed"].shape
    return rows, columns * per


def codes_of(tensors: Mapping[str, Tensor], layout: Layout, name: str) -> Codes:
    """The codes of one layer from its tensors by suffix. Raises `WeightsError` where they do not fit together."""
    try:
        return {"awq": _awq, "gptq": _gptq, "pack-quantized": _packed, "int-quantized": _signed}[layout.name](
            tensors, layout
        )
    except (RuntimeError, IndexError, WeightsError) as error:
        raise WeightsError(f"{name}: its quantized tensors do not fit together: {str(error).splitlines()[0]}") from None


def unpack(packed: Tensor, bits: int) -> Tensor:
    """int32 [..., N] to codes [..., N * 32 / bits] uint8, from the lowest bits up."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., N] to int32 [..., ceil(N * bits / 32)], filled up with zeros."""
    per = 32 // bits
    full = F.pad(codes, (0, -codes.shape[-1] % per)).to(torch.int64)
    shifts = torch.arange(0, 32, bits)
    whole = (full.view(*full.shape[:-1], -1, per) << shifts).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32)


def _awq(tensors: Mapping[str, Tensor], layout: Layout) -> Codes:
    places = torch.tensor(AWQ_ORDER).argsort()

    def outputs(packed: Tensor) -> Tensor:
        flat = unpack(packed, layout.bits)
        return flat.view(len(flat), -1, len(AWQ_ORDER))[..., places].flatten(1).t().contiguous()

    return Codes(
        bits=layout.bits,
        codes=outputs(tensors["qweight"]),
        scales=tensors["scales"].t().contiguous(),
        zeros=_uneven(outputs(tensors["qzeros"]), layout.bits),
    )


def _gptq(tensors: Mapping[str, Tensor], layout: Layout) -> Codes:
    codes = unpack(tensors["qweight"].t(), layout.bits)
    zeros = unpack(tensors["qzeros"], layout.bits).t().contiguous()
    if layout.less_one:
        zeros = (zeros + 1) & ((1 << layout.bits) - 1)  # a zero of 0 is stored as the largest number
    codes, order = _sorted(codes, tensors.get("g_idx"), tensors["scales"].shape[0])
    scales = tensors["scales"].t().contiguous()
    return Codes(bits=layout.bits, codes=codes, scales=scales, zeros=_uneven(zeros, layout.bits), order=order)


def _packed(tensors: Mapping[str, Tensor], layout: Layout) -> Codes:
    rows, columns = tensors["weight_shape"].tolist()
    codes = unpack(tensors["weight_packed"], layout.bits)[:rows, :columns].contiguous()
    scales, zeros = tensors["weight_scale"].contiguous(), None
    if not layout.symmetric:
        if "weight_zero_point" not in tensors:
            raise WeightsError("weight_zero_point is missing")
        zeros = unpack(tensors["weight_zero_point"].t(), layout.bits).t()[:rows].contiguous()
    codes, order = _sorted(codes, tensors.get("weight_g_idx"), scales.shape[1])
    return Codes(bits=layout.bits, codes=codes, scales=scales, zeros=zeros, order=order)


def _signed(tensors: Mapping[str, Tensor], layout: Layout) -> Codes:  # noqa: ARG001
    weight, scales = tensors["weight"], tensors["weight_scale"]
    if "weight_zero_point" in tensors and bool(tensors["weight_zero_point"].any()):
        raise WeightsError("a weight_zero_point other than 0 is not read here")
    codes = (weight.to(torch.int16) + 128).to(torch.uint8)
    return Codes(bits=8, codes=codes, scales=scales.view(-1, 1).expand(len(weight), 1).contiguous())


def _uneven(zeros: Tensor, bits: int) -> Tensor | None:
    """Zeros; None where all are the middle."""
    return None if bool((zeros == 1 << (bits - 1)).all()) else zeros.contiguous()


def _sorted(codes: Tensor, group_of: Tensor | None, groups: int) -> tuple[Tensor, Tensor | None]:
    """Codes with the inputs of a group side by side, and their order; None where they lie so already."""
    if group_of is None or bool((group_of < 0).any()):  # -1: no order was kept
        return codes, None
    size = codes.shape[1] // groups
    order = group_of.long().argsort(stable=True)
    if not torch.equal(group_of.long()[order], torch.arange(groups).repeat_interleave(size)):
        raise WeightsError(f"g_idx does not give every group {size} inputs")
    if torch.equal(order, torch.arange(len(order))):
        return codes, None
    return codes[:, order].contiguous(), order


def packed_tensors(codes: Codes) -> dict[str, Tensor]:
    """The tensors of one layer as pack-quantized has them, by suffix; for codes as `rounded` makes them."""
    if codes.zeros is not None or codes.order is not None:
        raise WeightsError("only symmetric weights in their own order are written; load the folder they came from.")
    return {
        "weight_packed": pack(codes.codes, codes.bits),
        "weight_scale": codes.scales.contiguous(),
        "weight_shape": torch.tensor(codes.codes.shape, dtype=torch.int64),
    }


def written_config(schemes: Mapping[tuple[int, int | None], Sequence[str]], ignored: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of a pack-quantized folder.

    Args:
        schemes: (bits, group or None for whole rows) -> patterns of modules that are so quantized.
        ignored: names of linear modules that are not.
    """
    groups = {
        f"group_{number}": {
            "targets": list(targets),
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "channel" if group is None else "group",
                "group_size": group,
                "dynamic": False,
                "actorder": None,
            },
            "input_activations": None,
            "output_activations": None,
        }
        for number, ((bits, group), targets) in enumerate(schemes.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignored),
        "kv_cache_scheme": None,
    }
