"""The `.npz` files of the original ViT code and of big_vision: named arrays as these write them, without a pickle.

Layers that older files number otherwise (`MlpBlock_3`, `LayerNorm_2`) get the names of newer ones, and layers that were
stacked into one array are taken apart. `plain` gives arrays torch's rank; name maps do the rest.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.core.errors import WeightsError

_PREFIXES = ("params/", "opt/target/", "target/")
_OLD = (
    ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
    ("LayerNorm_2", "LayerNorm_1"),
    ("MlpBlock_3", "MlpBlock_0"),
)
_BLOCK = re.compile(r"(.*Transformer|.*Encoder_0)/encoderblock_(\d+)/(.*)")
_STACK = re.compile(r"(.*Transformer|.*Encoder_0)/encoderblock/(.*)")


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an `.npz` file by newer name with dots, e.g. `Transformer.encoderblock_0.LayerNorm_0.scale`.

    Raises `WeightsError` for a file that is damaged, holds objects, or holds no array.
    """
    found: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                # bfloat16 has no name in numpy's format and comes as two bytes without a meaning.
                found[name] = array.view(np.uint16) if array.dtype == np.dtype("V2") else array
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, AttributeError) as error:
        raise WeightsError(f"{path} is no .npz file of plain arrays ({error}); fetch it again.") from None
    if not found:
        raise WeightsError(f"{path} holds no array; fetch it again.")
    tensors: dict[str, Tensor] = {}
    for old, array in found.items():
        for name, part in _unstacked(_newer(old), array):
            if name in tensors:
                raise WeightsError(f"{path}: {old} is the second array for {name}; the file mixes two layouts.")
            tensors[name] = _tensor(part, f"{path}: {old}")
    return tensors


def plain(name: str, tensor: Tensor) -> Tensor:
    """An array of big_vision as a tensor of torch's rank: matrices for projections, [O, I, H, W] for convolutions."""
    last = name.rpartition(".")[2]
    if last == "kernel" and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    if tensor.ndim == 3 and last == "kernel":  # of an attention's projection
        return tensor.flatten(0, 1) if name.endswith("out.kernel") else tensor.flatten(1)
    if tensor.ndim == 2 and last == "bias":
        return tensor.flatten()
    return tensor


def _newer(name: str) -> str:
    """The name as newer files have it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if _BLOCK.fullmatch(name) or _STACK.fullmatch(name):
        for old, new in _OLD:
            name = name.replace(f"/{old}/", f"/{new}/")
    return name


def _unstacked(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    stack = _STACK.fullmatch(name)
    if stack is None:
        yield name.replace("/", "."), array
        return
    for number, part in enumerate(array):
        yield f"{stack[1]}/encoderblock_{number}/{stack[2]}".replace("/", "."), part


def _tensor(array: np.ndarray, where: str) -> Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy(np.ascontiguousarray(array)).view(torch.bfloat16)
    if array.dtype not in (np.float64, np.float32, np.float16):
        raise WeightsError(f"{where} is of type {array.dtype}; numbers with a fraction are expected.")
    return torch.from_numpy(np.ascontiguousarray(array))
