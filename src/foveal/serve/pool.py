"""The decoders: a few children that open media, with a time limit for each request, replaced when they fail."""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from foveal.core.errors import ConfigError, FovealError, MediaError
from foveal.serve.children import Child
from foveal.serve.decoder import KINDS
from foveal.serve.wire import WireError

log = logging.getLogger(__name__)

START_S = 60.0
Reply = tuple[dict[str, Any], list[np.ndarray]]


class Decoders:
    """Runs requests in children, one at a time in each.

    Args:
        settings: the first message to each child (folder, context_tokens, memory_bytes, budget).
        count: how many children there are.
        limit_s: seconds that one request may take; its child is ended and replaced when it takes longer.
        requests: after so many a child is replaced, so that what decoders leak does not add up.
    """

    def __init__(self, settings: Mapping[str, Any], *, count: int, limit_s: float, requests: int = 500) -> None:
        self._settings, self._limit_s, self._requests = dict(settings), limit_s, requests
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decoder")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._children: set[Child] = set()
        self._closed = False
        self.restarts = 0
        self.seconds = 0.0

    async def start(self) -> None:
        """Starts all children and waits until they can work. Raises `ConfigError` for a folder that cannot be read."""
        loop, count = asyncio.get_running_loop(), self._threads._max_workers
        gate = threading.Barrier(count)  # so that each thread starts one

        def begin() -> None:
            gate.wait(START_S)
            self._child()

        await asyncio.gather(*(loop.run_in_executor(self._threads, begin) for _ in range(count)))

    async def process(self, message: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Reply:
        """What a decoder answers. Raises the `FovealError` that it reports, `MediaError` if it dies or is too slow."""
        arrays = [np.frombuffer(blob, np.uint8) for blob in blobs]
        reply, found = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, message, arrays)
        if "failed" in reply:
            raise KINDS.get(reply["failed"], FovealError)(reply["text"])
        return reply, found

    def close(self) -> None:
        """Ends all children."""
        self._closed = True
        with self._lock:
            children = list(self._children)
        for child in children:
            child.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, message: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> Reply:
        child = self._child()
        self._own.served += 1
        begun = time.monotonic()
        # A decoder that goes on and on is ended, though bytes may still come from it now and then.
        timer = threading.Timer(self._limit_s, child.process.kill)
        timer.daemon = True
        timer.start()
        try:
            child.channel.send(message, arrays)
            return child.channel.receive()
        except WireError:
            late = time.monotonic() - begun >= self._limit_s
            log.warning("a decoder %s; it is replaced", "took too long" if late else "died")
            child.kill()
            text = f"took longer than {self._limit_s:g} s to decode" if late else "cannot be decoded"
            raise MediaError(f"a medium of the request {text}; make it smaller or save it in another format.") from None
        finally:
            timer.cancel()
            self.seconds += time.monotonic() - begun

    def _child(self) -> Child:
        """This thread's child, a new one if it has none that lives."""
        old: Child | None = getattr(self._own, "child", None)
        if old is not None and old.alive and self._own.served < self._requests:
            return old
        if old is not None:
            with self._lock:
                self._children.discard(old)
            old.kill()
            self.restarts += 1
        self._own.child = None
        child = Child("foveal.serve.decoder", self._settings, frugal=True)
        with self._lock:
            if self._closed:
                child.kill()
                raise WireError("the server is ending.")
            self._children.add(child)
        try:
            ready, _ = child.channel.receive(START_S)
        except WireError as error:
            child.kill()
            raise ConfigError(f"a decoder did not start: {error}") from None
        if "failed" in ready:
            child.kill()
            raise ConfigError(ready["text"])
        self._own.child, self._own.served = child, 0
        return child
