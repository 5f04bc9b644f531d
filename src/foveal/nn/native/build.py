"""Compiles and opens the C++ beside this file, once a machine.

A library lies in the user's cache folder under a name that depends on source, compiler, flags and processor. It has no
OpenMP of its own: it finds the one that torch has loaded, so that both share their threads.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

log = logging.getLogger(__name__)

HEADERS = ("bfloat.h", "compact.h", "dense.h", "quantized.h", "rows.h", "tiles.h")
AVX512 = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl"))


@dataclass(frozen=True)
class Kernel:
    """One library: `name`.cpp, what the processor has to know for it (as Linux calls it), and what runs without it."""

    name: str
    needed: frozenset[str]
    otherwise: str


QUANTIZED = Kernel("quantized", AVX512 | {"avx512_vnni"}, "quantized layers run on torch's operators")
DENSE = Kernel("dense", AVX512 | {"avx512_bf16"}, "bfloat16 layers run on torch's operators")
ROWS = Kernel("rows", AVX512 | {"avx512_bf16"}, "what lies between bfloat16 layers runs on torch's operators")
LAYER = Kernel("layer", DENSE.needed | QUANTIZED.needed, "layers run part by part")

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-std=c++17")
COMPILE_SECONDS = 120
SWITCH = "FOVEAL_NATIVE"
"""Environment variable; 0 leaves the library alone."""


@cache
def library(kernel: Kernel) -> ctypes.CDLL | None:
    """The library, compiled if need be; None, with one line in the log, where it cannot be had."""
    if os.environ.get(SWITCH) == "0":
        return None
    flags = processor_flags()
    if flags is None or not flags >= kernel.needed:
        log.info("no own kernels for this processor; %s.", kernel.otherwise)
        return None
    try:
        return ctypes.CDLL(str(_compiled(kernel, flags)), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("own kernels cannot be built (%s); %s, more slowly.", reason, kernel.otherwise)
        return None


def processor_flags() -> frozenset[str] | None:
    """What the processor knows, as Linux lists it; None on other systems and processors."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(found.partition(":")[2].split())


def cache_folder() -> Path:
    """Where compiled code is kept: in XDG_CACHE_HOME, or in .cache of the home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveal" / "native"


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise OSError("no C++ compiler was found")


def _compiled(kernel: Kernel, flags: frozenset[str]) -> Path:
    """The library's file; compiled now where the cache has none."""
    source = f"{kernel.name}.cpp"
    texts = {name: (resources.files("foveal.nn.native") / name).read_bytes() for name in (source, *HEADERS)}
    recipe = repr((texts, os.environ.get("CXX"), FLAGS, sorted(flags))).encode()
    file = cache_folder() / f"{kernel.name}-{hashlib.sha256(recipe).hexdigest()[:24]}.so"
    _own_folder(file.parent)
    if file.exists():
        return file
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        stage = Path(folder)
        for name, text in texts.items():
            (stage / name).write_bytes(text)
        # Linked without -fopenmp: the symbols of the OpenMP that torch brought are found when the file is opened.
        _run([compiler, *FLAGS, "-w", "-c", source, "-o", "code.o"], stage)
        _run([compiler, "-shared", "code.o", "-o", "code.so"], stage)
        (stage / "code.so").replace(file)
    return file


def _own_folder(folder: Path) -> None:
    """Makes the folder; refuses one into which somebody else may write, since what lies in it is run."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} belongs to, or can be written by, somebody else")


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=COMPILE_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise OSError(f"{Path(command[0]).name} failed: {first}")
