"""Memory that goes back to the system."""

import ctypes
import re
import sys
from pathlib import Path

import pytest
import torch

from foveal.weights.pages import give_back

STATUS = Path("/proc/self/status")


def own_mb() -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) / 1000


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the allocator keeps what it has"
)
def test_freed_memory_goes_back_though_something_behind_it_is_in_use():
    pieces = [torch.zeros(15_000) for _ in range(4_000)]  # 240 MB in pieces that come from the heap
    behind = [torch.zeros(15_000) for _ in range(10)]
    full = own_mb()
    del pieces
    give_back()
    assert full - own_mb() > 150
    assert float(behind[0].sum()) == 0


def test_where_the_allocator_cannot_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    give_back()
