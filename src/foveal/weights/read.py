"""Fills a module from a checkpoint: strictly, and without a second copy of the weights in memory.

On a CPU, tensors that keep their type are not read at all: parameters point into a private memory map of
the file, whose pages the system brings in when they are used. Tensors that change type or device are
copied in windows, and the map is opened anew after each window, so that pages already copied do not
count against this process: peak memory stays within 1.15 x the filled weights. Joined and transposed
tensors are copied that way too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from foveal.core.errors import WeightsError
from foveal.weights.checkpoint import Checkpoint, TensorInfo, open_checkpoint, some
from foveal.weights.names import NameMap, Place

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

    def kind(pieces: Sequence[_Piece]) -> torch.dtype:
        stored = DTYPES[pieces[0].info.dtype]
        return dtype if dtype is not None and stored.is_floating_point else stored

    total = sum(piece.info.values * kind(pieces).itemsize for pieces in sources.values() for piece in pieces)
    window = _Window(max(MIN_WINDOW_BYTES, min(MAX_WINDOW_BYTES, total // 25)))
    for copy, original in copies:
        _refuse_difference(copy, original, window)
    kept = _Window(None)
    filled: dict[str, Tensor] = {}
    for name, pieces in sources.items():
        info, whole = pieces[0].info, len(pieces) == 1 and not pieces[0].place.transposed
        if whole and place.type == "cpu" and kind(pieces) == DTYPES[info.dtype]:
            filled[name] = kept.tensor(info).view(targets[name].shape)
        else:
            shape = tuple(targets[name].shape)
            filled[name] = torch.empty(shape, dtype=kind(pieces), device=place)
            for piece in pieces:
                _copy(piece.info, piece.into(filled[name]), window)
    module.load_state_dict(filled, strict=True, assign=True)


@dataclass(frozen=True)
class _Piece:
    """A stored tensor and the place of ours that it fills."""

    info: TensorInfo
    place: Place

    def into(self, target: Tensor) -> Tensor:
        """The part of our tensor that the stored one fills, seen in the stored one's layout."""
        return share(target, self.place)


def share(target: Tensor, place: Place) -> Tensor:
    """The part of our tensor that one published tensor holds, in the published one's layout; a view."""
    if place.shares > 1:
        rows = target.shape[0] // place.shares
        target = target[place.share * rows : (place.share + 1) * rows]
    if place.transposed:
        target = target.mT
    return target.view((1,) * place.ones + target.shape) if place.ones else target


def unfit(target: Tensor, place: Place) -> str | None:
    """Why our tensor cannot be cut or transposed as `place` says; None when it can."""
    if place.shares > 1 and (target.ndim == 0 or target.shape[0] % place.shares):
        return f"{place.ours} has shape {list(target.shape)}, which has no {place.shares} equal shares of rows"
    if place.transposed and target.ndim < 2:
        return f"{place.ours} has shape {list(target.shape)}, but only a matrix can be transposed (or a stack of them)"
    return None


def shapes_fit(module: nn.Module, checkpoint: Checkpoint, names: NameMap) -> bool:
    """Whether every stored tensor that has a place in `module` by its name has the shape of that place."""
    targets = module.state_dict(keep_vars=True)
    places = ((info, names.place(published)) for published, info in checkpoint.tensors.items())
    return not any(
        place and place.ours in targets and any(_mismatch(_Piece(info, place), targets[place.ours]))
        for info, place in places
    )


def _match(
    targets: Mapping[str, Tensor], checkpoint: Checkpoint, names: NameMap
) -> tuple[dict[str, list[_Piece]], list[tuple[TensorInfo, TensorInfo]]]:
    """Our name -> its stored pieces, and the (copy, original) pairs that have to be equal. Looks at headers only."""
    tied = {copy: other for copy, other in names.ties.items() if copy not in targets and other in targets}
    found: dict[str, dict[int, _Piece]] = {}
    unknown, homeless, wrong = [], [], []
    for published, info in checkpoint.tensors.items():
        place = names.place(published)
        if place is None:
            if not names.skips(published):
                unknown.append(published)
        elif twin := found.get(place.ours, {}).get(place.share):
            wrong.append(f"{twin.info.name} and {published} are two spellings of one tensor")
        elif place.ours not in targets and place.ours not in tied:
            homeless.append(published)
        else:
            piece = _Piece(info, place)
            found.setdefault(place.ours, {})[place.share] = piece
            wrong.extend(_mismatch(piece, targets[place.ours if place.ours in targets else tied[place.ours]]))
    missing, lacking = [], 0
    for name in targets:
        sources = names.sources(name)
        if sources is None:
            absent = [f"{name} (no rule)"]
        else:
            absent = [s for s, place in sources.items() if place.share not in found.get(name, {})]
        missing.extend(absent)
        lacking += bool(absent)
    for pieces in found.values():
        if len(kinds := sorted({piece.info.dtype for piece in pieces.values()})) > 1:
            several = some(pieces[share].info.name for share in sorted(pieces))
            wrong.append(f"{several} are parts of one tensor but stored as {' and '.join(kinds)}")
    problems = []
    if missing:
        problems.append(f"{lacking} of {len(targets)} tensors are missing ({some(missing)})")
    for copy in names.ties:
        if names.published(copy) in missing and names.ties[copy] in found:
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
    copies = [(found.pop(name)[0].info, found[other][0].info) for name, other in tied.items() if name in found]
    return {name: [piece for _, piece in sorted(pieces.items())] for name, pieces in found.items()}, copies


def _mismatch(piece: _Piece, target: Tensor) -> Iterator[str]:
    """What is wrong with a stored tensor as (a share of) the value of `target`."""
    info = piece.info
    if problem := unfit(target, piece.place):
        yield f"{info.name} cannot be read: {problem}"
    elif info.shape != (expected := tuple(piece.into(target).shape)):
        yield f"{info.name} has shape {list(info.shape)}, expected {list(expected)}"
    stored = DTYPES.get(info.dtype)
    if stored is None or stored.is_floating_point != target.is_floating_point():
        wanted = "F64, F32, F16 or BF16" if target.is_floating_point() else str(target.dtype)
        yield f"{info.name} is stored as {info.dtype}, expected {wanted}"
    elif not stored.is_floating_point and stored != target.dtype:
        yield f"{info.name} is stored as {info.dtype}, expected {target.dtype}"


def stored_tensor(info: TensorInfo) -> Tensor:
    """One stored tensor as it is, in a memory map of its file."""
    return _Window(None).tensor(info)


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
        for _, part in self._slices(info, flat=True):
            yield part
            del part

    def rows(self, info: TensorInfo) -> Iterator[tuple[int, Tensor]]:
        """Whole rows, as many as the window takes, and the number of the first."""
        yield from self._slices(info, flat=False)

    def _slices(self, info: TensorInfo, *, flat: bool) -> Iterator[tuple[int, Tensor]]:
        count = info.values if flat else info.shape[0]
        size = 1 if flat else max(1, info.values // max(1, count))
        step = max(1, (self.limit or MAX_WINDOW_BYTES) // 8 // size)
        for start in range(0, count, step):
            tensor = self.tensor(info)
            part = (tensor.view(-1) if flat else tensor)[start : start + step]
            del tensor
            self._used += part.nbytes
            yield start, part
            del part


def _copy(info: TensorInfo, target: Tensor, window: _Window) -> None:
    """Copies a stored tensor into `target`, which has its shape and may be a transposed view."""
    if target.is_contiguous():
        flat, start = target.view(-1), 0
        for part in window.parts(info):
            _set(info, flat[start : start + len(part)], part)
            start += len(part)
    else:
        for start, part in window.rows(info):
            _set(info, target[start : start + len(part)], part)


def _set(info: TensorInfo, target: Tensor, part: Tensor) -> None:
    target.copy_(part)
    # fp16 ends at 65,504; a value beyond it would silently become infinite.
    narrowed = target.dtype == torch.float16 and part.dtype != target.dtype
    if narrowed and bool((target.isinf() & part.isfinite().to(target.device)).any()):
        raise WeightsError(
            f"{info.file}: tensor {info.name!r} has values up to {part.abs().max().item():.4g}, "
            "which float16 cannot hold; load with bfloat16 or float32."
        )


def _refuse_difference(copy: TensorInfo, original: TensorInfo, window: _Window) -> None:
    """A stored copy of a tied tensor is harmless only if it says the same."""
    other = _Window(window.limit)
    for one, two in zip(window.parts(copy), other.parts(original), strict=True):
        if not torch.equal(one.to(torch.float32), two.to(torch.float32)):
            raise WeightsError(
                f"{copy.file}: {copy.name!r} differs from {original.name!r}, but config.json ties the two; "
                "set tie_word_embeddings to false to use both, or remove the copy."
            )
