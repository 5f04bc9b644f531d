"""Sides of a comparison as processes that take turns, and the moments in which they have the machine for themselves.

with Window(["flock", "lock"]):          # a command that runs another one when the machine is free; [] for none
    seconds = side.ask({"do": "decode", ...})["seconds"]
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any


class Window:
    """Holds the machine through a command such as `flock FILE`, which is given one that waits until we are done."""

    def __init__(self, prefix: list[str]) -> None:
        self.prefix, self.begun, self.kept = prefix, 0.0, True
        self._holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Window":
        if self.prefix:
            self._holder = subprocess.Popen(
                [*self.prefix, "sh", "-c", "echo mine; read _"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            if not self._holder.stdout or not self._holder.stdout.readline():
                sys.exit(f"{shlex.join(self.prefix)} ended without giving the machine")
        self.begun = time.monotonic()
        return self

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.begun

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """`kept` is False from here on if the command gave the machine away before."""
        if self._holder is not None:
            self.kept = self._holder.poll() is None
            self._holder.communicate()


def busy_s() -> float:
    """Seconds of processor time that the whole machine has spent, what its host took from it included."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


class Side:
    """A process that speaks `sides/protocol.py`, stopped (SIGSTOP) unless it is asked."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        self._alive = True
        if "ready" not in self._answer():
            self.close()
            sys.exit(f"{name} did not start; see {log}")
        self._signal(signal.SIGSTOP)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer; ends the program where there is none."""
        self._signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if not answer or "error" in answer:
            sys.exit(f"{self.name}: {answer.get('error', 'no answer')}; see {self.log}")
        self._signal(signal.SIGSTOP)
        return answer

    def alone(self, question: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Its answer, and how many processors others kept busy meanwhile, in the mean."""
        begun, busy, own = time.monotonic(), busy_s(), self._busy_s()
        answer = self.ask(question)
        spent = time.monotonic() - begun
        return answer, max(0.0, busy_s() - busy - (self._busy_s() - own)) / spent

    def _busy_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        if self._alive:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self._alive = False

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line.strip() else {}

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)
