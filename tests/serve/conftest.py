"""One server with the small model, as a process of its own, for all tests of this folder that ask one."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
START_S = 180.0


class Server:
    """A running `foveal serve`."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "foveal.cli.main", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines.put), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, take) -> None:
        for line in stream:
            take(line)
        take("")

    def address(self) -> str:
        """Waits until it says where it listens."""
        while line := self.lines.get(timeout=START_S):
            if "serving on" in line:
                return line.split()[-1]
        raise AssertionError("the server did not start: " + "".join(self.errors))

    def children(self) -> dict[str, int]:
        """Modules that its children run -> their process ids."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    status = (folder / "stat").read_text().rpartition(")")[2].split()
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if int(status[1]) == self.process.pid and b"-m" in words:
                    found[words[words.index(b"-m") + 1].decode()] = int(folder.name)
        return found

    def stop(self, how: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        self.process.send_signal(how)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self.process.wait()
            for reader in self._readers:
                reader.join(timeout_s)
            self.process.stdout.close()
            self.process.stderr.close()


@contextmanager
def running(*arguments: str) -> Iterator[tuple[Server, str]]:
    server = Server(*arguments)
    try:
        yield server, server.address()
    finally:
        server.stop()


@pytest.fixture(scope="package")
def served() -> Iterator[tuple[Server, str]]:
    with running("--threads", "1", "--decoders", "1") as found:
        yield found


@pytest.fixture
def url(served) -> str:
    return served[1]


@pytest.fixture(scope="package")
def http(served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served[1], timeout=120) as client:
        yield client
