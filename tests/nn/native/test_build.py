"""The kernel is compiled where it can be, and its absence is said once and harms nothing."""

import logging
import shutil

import pytest

from foveal.nn.native import build

KERNELS = [build.QUANTIZED, build.DENSE]
NEEDED = build.QUANTIZED.needed | build.DENSE.needed
able = build.processor_flags() is not None and build.processor_flags() >= NEEDED
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache folder, and a `library` that has not been asked yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(build.SWITCH, raising=False)
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


@pytest.mark.skipif(not able or shutil.which("g++") is None, reason="no compiler or another processor")
@kernels
def test_it_is_compiled_once(fresh, kernel):
    assert build.library(kernel) is not None
    (made,) = build.cache_folder().iterdir()
    assert made.suffix == ".so"
    before = made.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library(kernel) is not None
    assert made.stat().st_mtime_ns == before


@pytest.mark.skipif(not able, reason="another processor is refused before")
@pytest.mark.parametrize(
    ("compiler", "reason"), [("", "no C++ compiler"), ("#!/bin/sh\necho no luck >&2\nexit 1\n", "failed: no luck")]
)
def test_without_a_compiler_one_line_says_so(fresh, monkeypatch, caplog, compiler, reason):
    monkeypatch.setenv("PATH", str(fresh / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    (fresh / "bin").mkdir()
    if compiler:
        (fresh / "bin" / "g++").write_text(compiler)
        (fresh / "bin" / "g++").chmod(0o755)
    with caplog.at_level(logging.WARNING):
        assert build.library(build.DENSE) is None
        assert build.library(build.DENSE) is None
    (line,) = caplog.messages
    assert reason in line and "torch's operators" in line


@pytest.mark.skipif(not able, reason="another processor is refused before")
def test_a_folder_that_others_may_write_is_refused(fresh, caplog):
    folder = build.cache_folder()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert build.library(build.DENSE) is None
    assert "somebody else" in caplog.text


def test_it_can_be_switched_off(fresh, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "0")
    assert build.library(build.DENSE) is None
    assert not build.cache_folder().exists()


def test_other_processors_do_without(fresh, monkeypatch, caplog):
    monkeypatch.setattr(build, "processor_flags", lambda: frozenset({"avx2"}))
    assert build.library(build.DENSE) is None
    assert not caplog.records
