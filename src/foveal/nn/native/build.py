"""Compiles and opens the C++ beside this file, once a machine.

The library lies in the user's cache folder under a name that depends on source, compiler, flags and processor. It has
no OpenMP of its own: it finds the one that torch has loaded, so that both share their threads.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

log = logging.getLogger(__name__)

SOURCE = "quantized.cpp"
NEEDED = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"))
"""What the processor has to know, as Linux calls it."""
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-std=c++17")
COMPILE_SECONDS = 120
SWITCH = "FOVEAL_NATIVE"
"""Environment variable; 0 leaves the library alone."""


@cache
def library() -> ctypes.CDLL | None:
    """The library, compiled if need be; None, with one line in the log, where it cannot be had."""
    if os.environ.get(SWITCH) == "0":
        return None
    flags = processor_flags()
    if flags is None or not flags >= NEEDED:
        log.info("no own kernels for this processor; quantized layers run on torch's operators.")
        return None
    try:
        return _declared(ctypes.CDLL(str(_compiled(flags)), mode=os.RTLD_NOW | os.RTLD_LOCAL))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("own kernels cannot be built (%s); quantized layers run on torch's operators, more slowly.", reason)
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


def _compiled(flags: frozenset[str]) -> Path:
    """The library's file; compiled now where the cache has none."""
    source = (resources.files("foveal.nn.native") / SOURCE).read_bytes()
    recipe = repr((os.environ.get("CXX"), FLAGS, sorted(flags))).encode()
    file = cache_folder() / f"quantized-{hashlib.sha256(source + recipe).hexdigest()[:24]}.so"
    _own_folder(file.parent)
    if file.exists():
        return file
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=file.parent) as name:
        stage = Path(name)
        (stage / SOURCE).write_bytes(source)
        # Linked without -fopenmp: the symbols of the OpenMP that torch brought are found when the file is opened.
        _run([compiler, *FLAGS, "-w", "-c", SOURCE, "-o", "code.o"], stage)
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


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions."""
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.foveal_amx.argtypes, library.foveal_amx.restype = [], number
    library.foveal_room.argtypes, library.foveal_room.restype = [address, size], size
    library.foveal_linear.argtypes = [address, address, address, size, number, size, address]
    library.foveal_linear.restype = None
    return library
