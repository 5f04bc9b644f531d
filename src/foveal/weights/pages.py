"""Memory of mapped weight files that is not needed any more.

A parameter that points into a memory-mapped file counts against the process once its pages were read. When another
copy has taken its place, the pages can go; who reads the parameter all the same gets them from the file again.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

_DONTNEED = 4  # MADV_DONTNEED of Linux
_MAPS = Path("/proc/self/smaps")


class MappedFiles:
    """The memory-mapped files of this process whose pages are as in the file, as `look` last saw them."""

    def __init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Finds the files anew; needed once weights may have been written to."""
        self._ranges = list(_unchanged()) if sys.platform == "linux" and _MAPS.exists() else []

    def forget(self, tensor: Tensor) -> int:
        """Gives back the pages that only `tensor` lies on; 0 bytes where it is in no such file (or not on Linux)."""
        first = tensor.data_ptr()
        last = first + tensor.nbytes
        page = mmap.PAGESIZE
        start, stop = -(-first // page) * page, last // page * page
        inside = any(low <= first and last <= high for low, high in self._ranges)
        if not inside or start >= stop or not tensor.is_contiguous():
            return 0
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONTNEED)
        return 0 if failed else stop - start


def _unchanged() -> Iterator[tuple[int, int]]:
    """Address ranges of private file mappings no page of which was written to (a written page has left its file)."""
    current: tuple[int, int] | None = None
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            low, _, high = fields[0].partition("-")
            mapped = len(fields) > 5 and fields[5].startswith("/") and fields[1].endswith("p")
            current = (int(low, 16), int(high, 16)) if mapped else None
        elif fields[0] == "Anonymous:" and current is not None and fields[1] == "0":
            yield current


def give_back() -> None:
    """Gives memory that was freed, but that the allocator keeps, back to the system, where it can (glibc's).

    Worth it after work with many temporaries that is not done again: rounding 2 billion weights leaves 0.7 GB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
