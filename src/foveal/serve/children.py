"""Child processes of the server: fresh interpreters that run one module of ours and are spoken to over a socket."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import foveal
from foveal.serve.wire import Channel, WireError

_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
# Freed memory of large pictures goes back to the system instead of staying in one arena a thread.
_FRUGAL = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_MMAP_THRESHOLD_": "1048576"}
# Where this process found the package, so that a child runs the same.
_SEARCH = os.pathsep.join([str(Path(foveal.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])


class Child:
    """One child. It ends by itself when this process does, because its connection ends.

    Args:
        module: what it runs, e.g. "foveal.serve.decoder"; its `main` gets the socket's number as argument.
        settings: the first message that it is sent.
        frugal: whether its allocator returns memory at once.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], *, frugal: bool = False) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {k: v for k, v in os.environ.items() if not any(word in k.upper() for word in _SECRET)}
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**environment, "PYTHONPATH": _SEARCH, **(_FRUGAL if frugal else {})},
                start_new_session=True,  # Ctrl-C in the terminal reaches the server, which ends its children in order
            )
        self.channel = Channel(ours)
        with contextlib.suppress(WireError):  # it died at once; whoever waits for its answer is told
            self.channel.send(settings)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Ends it now, and waits until it is gone."""
        self.process.kill()
        self.channel.close()
        self.process.wait()


def parent() -> Channel:
    """In a child: the connection to the process that started it."""
    return Channel(socket.socket(fileno=int(sys.argv[1])))
