"""Runs the application under uvicorn, and stops it in order."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from foveal.core.errors import ConfigError
from foveal.serve.app import make_app
from foveal.serve.options import ServeOptions
from foveal.serve.service import Service

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 4096
LAST_S = 2.0
"""What requests get that are told to end, and then their connections."""


class _Server(uvicorn.Server):
    """Tells when it listens, and stops in order: while open requests finish it refuses new ones and says so, then it
    ends those that are left, then it closes."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[str], None], address: str) -> None:
        super().__init__(config)
        self._service, self._ready, self._address = service, ready, address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready(self._address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.places.draining = True
        await self._until_done(self._service.options.shutdown_s)
        self._service.end_work()
        await self._until_done(LAST_S)
        await super().shutdown(sockets)

    async def _until_done(self, seconds: float) -> None:
        """Until no request is open, for so long at most; a second Ctrl-C ends it too."""
        end = time.monotonic() + seconds
        while self._service.places.taken and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.02)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: the process ends by itself, with status 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(options: ServeOptions, ready: Callable[[str], None]) -> None:
    """Serves until the process is told to stop (SIGTERM, Ctrl-C). `ready` is told the address once requests are taken.

    Open requests get `shutdown_s` to finish and are then ended with an error; new ones are refused meanwhile.

    Raises:
        ConfigError: the address is taken, or the model cannot be served.
    """
    service = Service(options)
    listener = _listener(options.host, options.port)
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    asyncio.run(_run(service, listener, lambda _: ready(address)))


async def _run(service: Service, listener: socket.socket, ready: Callable[[str], None]) -> None:
    await service.start()
    config = uvicorn.Config(
        make_app(service, own=False),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(LAST_S),
        h11_max_incomplete_event_size=64 * 1024,
    )
    try:
        await _Server(config, service, ready, "").serve(sockets=[listener])
    finally:
        listener.close()
        await service.close()


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        # Connections inherit it. Without, the last bytes of an answer wait up to 40 ms for the client to confirm the
        # first ones; asyncio sets it by itself only for sockets that were made with the protocol's number.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port."
        ) from None
