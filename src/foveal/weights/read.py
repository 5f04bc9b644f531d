"""Fills a module from a checkpoint: strictly, and without a second copy of the weights in memory.

On a CPU, tensors that keep their type are not read at all: parameters point into a private memory map of
the file, whose pages the system brings in when they are used. Tensors that change type or device are
copied in windows, and the map is opened anew after each window, so that pages already copied do not
count against this process: peak memory stays within 1.15 x the filled weights.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from foveal.core.errors import WeightsError
from foveal.weights.checkpoint import Checkpoint, TensorInfo, open_checkpoint, some
from foveal.weights.names import NameMap

__all__ = ["DTYPES", "fill", "open_checkpoint"]

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's type for safetensors' name of it; others (fp8, ...) need a scale that plain tensors do not carry."""

MAX_WINDOW_BYTES = 256 * 1024**2
MIN_WINDOW_BYTES = 8 * 1024**2


def fill(
    module: nn.Module,
    checkpoint: Checkpoint,
    names: NameMap,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Gives every parameter and persistent buffer of `module` its tensor of `checkpoint`, or changes nothing.

    Args:
        module: usually built on the meta device; its tensors are replaced, not written into.
        names: translates the checkpoint's names to the module's.
        dtype: type of the floating tensors; None keeps the stored one.
        device: where the tensors go.

    A tensor that `names` ties to another may be left out of the module. If the checkpoint carries it all the
    same, it has to be an equal copy.

    Raises `WeightsError` that names the tensors when one is missing, unknown, doubled, or of another shape
    or type, when a tied copy differs, or when a value does not fit into `dtype`.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise WeightsError(f"dtype is {dtype}, expected a floating type such as torch.bfloat16.")
    targets = module.state_dict(keep_vars=True)
    sources, copies = _match(targets, checkpoint, names)
    place = torch.device(device)

    def kind(info: TensorInfo) -> torch.dtype:
        stored = DTYPES[info.dtype]
        return dtype if dtype is not None and stored.is_floating_point else stored

    total = sum(info.values * kind(info).itemsize for info in sources.values())
    window = _Window(max(MIN_WINDOW_BYTES, min(MAX_WINDOW_BYTES, total // 25)))
    for copy, original in copies:
        _refuse_difference(copy, original, window)
    kept = _Window(None)
    filled: dict[str, Tensor] = {}
    for name, info in sources.items():
        if place.type == "cpu" and kind(info) == DTYPES[info.dtype]:
            filled[name] = kept.tensor(info)
        else:
            filled[name] = _copied(info, kind(info), place, window)
    module.load_state_dict(filled, strict=True, assign=True)


def _match(
    targets: Mapping[str, Tensor], checkpoint: Checkpoint, names: NameMap
) -> tuple[dict[str, TensorInfo], list[tuple[TensorInfo, TensorInfo]]]:
    """Our name -> its tensor, and the (copy, original) pairs that have to be equal. Looks at headers only."""
    tied = {copy: other for copy, other in names.ties.items() if copy not in targets and other in targets}
    sources: dict[str, TensorInfo] = {}
    unknown, homeless, wrong = [], [], []
    for published, info in checkpoint.tensors.items():
        ours = names.ours(published)
        if ours is None:
            unknown.append(published)
        elif ours in sources:
            wrong.append(f"{sources[ours].name} and {published} are two spellings of one tensor")
        elif ours not in targets and ours not in tied:
            homeless.append(published)
        else:
            sources[ours] = info
            target = targets[ours if ours in targets else tied[ours]]
            wrong.extend(_mismatch(info, target))
    missing = [names.published(name) or f"{name} (no rule)" for name in targets if name not in sources]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(targets)} tensors are missing ({some(missing)})")
    for copy in names.ties:
        if names.published(copy) in missing and names.ties[copy] in sources:
            problems.append(
                f"if {names.published(copy)} shares the value of {names.published(names.ties[copy])}, "
                "config.json has to say tie_word_embeddings: true"
            )
    if unknown:
        problems.append(f"{len(unknown)} are not known to {names.where} ({some(unknown)})")
    if homeless:
        problems.append(f"{len(homeless)} have no place in the model that config.json describes ({some(homeless)})")
    if wrong:
        problems.append(some(wrong, separator="; "))
    if problems:
        raise WeightsError(
            f"{checkpoint.folder} does not fit the model: {'; '.join(problems)}. "
            "Check that config.json and the weights belong together and are complete."
        )
    copies = [(sources.pop(name), sources[other]) for name, other in tied.items() if name in sources]
    return sources, copies


def _mismatch(info: TensorInfo, target: Tensor) -> Iterator[str]:
    """What is wrong with `info` as the value of `target`."""
    if info.shape != tuple(target.shape):
        yield f"{info.name} has shape {list(info.shape)}, expected {list(target.shape)}"
    stored = DTYPES.get(info.dtype)
    if stored is None or stored.is_floating_point != target.is_floating_point():
        expected = "F64, F32, F16 or BF16" if target.is_floating_point() else str(target.dtype)
        yield f"{info.name} is stored as {info.dtype}, expected {expected}"
    elif not stored.is_floating_point and stored != target.dtype:
        yield f"{info.name} is stored as {info.dtype}, expected {target.dtype}"


class _Window:
    """Tensors in a memory map that is dropped after `limit` bytes were used of it; None keeps it."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._files: dict[Path, Any] = {}
        self._used = 0

    def tensor(self, info: TensorInfo) -> Tensor:
        """The tensor where it lies. Drop it before the next call if the window has a limit."""
        if self.limit is not None and self._used >= self.limit:
            self._files.clear()
            self._used = 0
        try:
            if info.file not in self._files:
                self._files[info.file] = safe_open(str(info.file), framework="pt")
            tensor: Tensor = self._files[info.file].get_tensor(info.name)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{info.file}: tensor {info.name!r} cannot be read: {error}") from None
        return tensor

    def parts(self, info: TensorInfo) -> Iterator[Tensor]:
        """The tensor's values in flat parts of equally many values, each no larger than the window."""
        step = max(1, (self.limit or MAX_WINDOW_BYTES) // 8)
        for start in range(0, info.values, step):
            part = self.tensor(info).view(-1)[start : start + step]
            self._used += part.nbytes
            yield part
            del part


def _copied(info: TensorInfo, dtype: torch.dtype, device: torch.device, window: _Window) -> Tensor:
    result = torch.empty(info.shape, dtype=dtype, device=device)
    flat = result.view(-1)
    start = 0
    for part in window.parts(info):
        target = flat[start : start + len(part)]
        target.copy_(part)
        # fp16 ends at 65,504; a value beyond it would silently become infinite.
        narrowed = dtype == torch.float16 and part.dtype != dtype
        if narrowed and bool((target.isinf() & part.isfinite().to(device)).any()):
            raise WeightsError(
                f"{info.file}: tensor {info.name!r} has values up to {part.abs().max().item():.4g}, "
                "which float16 cannot hold; load with bfloat16 or float32."
            )
        start += len(part)
    return result


def _refuse_difference(copy: TensorInfo, original: TensorInfo, window: _Window) -> None:
    """A stored copy of a tied tensor is harmless only if it says the same."""
    other = _Window(window.limit)
    for one, two in zip(window.parts(copy), other.parts(original), strict=True):
        if not torch.equal(one.to(torch.float32), two.to(torch.float32)):
            raise WeightsError(
                f"{copy.file}: {copy.name!r} differs from {original.name!r}, but config.json ties the two; "
                "set tie_word_embeddings to false to use both, or remove the copy."
            )
