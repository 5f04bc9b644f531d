"""Memory for weights that are read from end to end at every step."""

import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK_BYTES = 32 * 1024**2
ALIGN = 64

_lock = threading.Lock()
_open: tuple[mmap.mmap, int] | None = None
"""The newest chunk and how much of it is given away."""


def settle(tensor: Tensor) -> Tensor:
    """The tensor in memory of large pages; see `reserve`."""
    return reserve(tensor.shape, tensor.dtype).copy_(tensor)


def reserve(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of large pages, where the system has them: a core reads these up to a fifth faster. Its values are any.

    Tensors lie end to end in chunks; a chunk is given back when the last tensor in it is gone.
    """
    global _open  # noqa: PLW0603
    count = math.prod(shape)
    size = -(-max(count * dtype.itemsize, 1) // ALIGN) * ALIGN
    with _lock:
        if _open is None or _open[1] + size > len(_open[0]):
            _open = (_chunk(max(size, CHUNK_BYTES)), 0)
        chunk, start = _open
        _open = (chunk, start + size)
    return torch.frombuffer(chunk, dtype=dtype, count=count, offset=start).view(tuple(shape))


def _chunk(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk
