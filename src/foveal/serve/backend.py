"""The server's side of the engine: starts it, speaks to it, notices when it dies, and starts it again."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from foveal.core.errors import BudgetError, ConfigError, ContextError, FovealError, InputError
from foveal.core.packed import Packed
from foveal.engine.request import Event
from foveal.serve.children import Child
from foveal.serve.wire import WireError, pack_message

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "down", "stopped"]
_REFUSALS = {"budget": BudgetError, "context": ContextError, "input": InputError}
_PAUSE_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # before the next start, if the last ones failed


class EngineDown(FovealError):
    """The engine is not there, or went away while it worked."""

    def __init__(self) -> None:
        super().__init__("the engine is restarting; try again in a moment.")


class Call:
    """One request at the engine: what it said and was not read yet."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[Event | np.ndarray | FovealError] = asyncio.Queue()

    def put(self, item: Event | np.ndarray | FovealError) -> None:
        self._said.put_nowait(item)

    async def next(self) -> Event:
        """The next event. Raises what the engine reported, and `EngineDown` when it died."""
        item = await self._said.get()
        if isinstance(item, FovealError):
            raise item
        if not isinstance(item, Event):
            raise WireError("the engine answered something else.")
        return item

    async def vectors(self) -> np.ndarray:
        """The vectors of an embedding request."""
        item = await self._said.get()
        if isinstance(item, FovealError):
            raise item
        if not isinstance(item, np.ndarray):
            raise WireError("the engine answered something else.")
        return item


@dataclass
class Backend:
    """Holds one engine child alive.

    Attributes:
        settings: its first message.
        start_s: seconds that it may take to load the model.
        stall_s: seconds without a word, while requests are open, after which it is taken for hung and replaced.
        state: "ready" when it takes requests.
        stats: the engine's own figures, as they were last told.
        restarts: how often it had to be started again.
    """

    settings: Mapping[str, Any]
    start_s: float = 600.0
    stall_s: float = 300.0
    state: State = "starting"
    stats: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0

    def __post_init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._child: Child | None = None
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="to-engine")
        self._heard = time.monotonic()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the engine and waits until it is ready. Raises `ConfigError` when it says why it cannot be."""
        self._loop = asyncio.get_running_loop()
        await self._begin()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Ends the engine; open requests hear `EngineDown`."""
        self.state = "stopped"
        if self._keeper is not None:
            self._keeper.cancel()
        if self._child is not None:
            await asyncio.to_thread(self._child.kill)
        self._fail_all()
        self._sender.shutdown(wait=False, cancel_futures=True)

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.process.pid

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._calls)

    def ask(self, id: str, packed: Packed, sampling: Mapping[str, Any], *, n: int, grammar: str | None) -> Call:
        """Hands a request to the engine. Raises `EngineDown` when there is none."""
        head, arrays = pack_message(packed)
        message = {"do": "add", "id": id, "packed": head, "sampling": sampling, "n": n, "grammar": grammar}
        return self._submit(id, message, arrays)

    def embed(self, id: str, what: Literal["text", "pictures"], arrays: Sequence[np.ndarray]) -> Call:
        """Asks for vectors."""
        return self._submit(id, {"do": "embed", "id": id, "what": what}, arrays)

    def end(self, id: str, *, abort: bool) -> None:
        """Forgets a request; with `abort` the engine stops working on it before its next step."""
        if self._calls.pop(id, None) is not None and abort and self._child is not None:
            self._post(self._child, {"do": "abort", "id": id}, ())

    def _submit(self, id: str, message: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> Call:
        if self.state != "ready" or self._child is None:
            raise EngineDown
        if not self._calls:
            self._heard = time.monotonic()
        call = self._calls[id] = Call()
        self._post(self._child, message, arrays)
        return call

    def _post(self, child: Child, message: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> None:
        def send() -> None:
            with contextlib.suppress(WireError):  # whoever reads from it notices
                child.channel.send(message, arrays)

        self._sender.submit(send)  # one thread: messages keep their order, and the event loop never waits

    async def _begin(self) -> None:
        child = self._child = await asyncio.to_thread(Child, "foveal.serve.engine_child", self.settings)
        try:
            ready, _ = await asyncio.to_thread(child.channel.receive, self.start_s)
        except WireError as error:
            await asyncio.to_thread(child.kill)
            raise EngineDown from error
        if "failed" in ready:
            await asyncio.to_thread(child.kill)
            raise ConfigError(ready["text"])
        self.state, self.stats, self._heard = "ready", {}, time.monotonic()
        self._gone = asyncio.Event()
        threading.Thread(target=self._listen, args=(child, self._gone), daemon=True, name="from-engine").start()

    def _listen(self, child: Child, gone: asyncio.Event) -> None:
        try:
            while True:
                self._loop.call_soon_threadsafe(self._hear, child, *child.channel.receive())
        except WireError as error:
            log.debug("%s", error)
        except RuntimeError:
            return  # the event loop has ended
        try:
            self._loop.call_soon_threadsafe(self._lost, child, gone)
        except RuntimeError:
            return

    def _hear(self, child: Child, message: dict[str, Any], arrays: list[np.ndarray]) -> None:
        if child is not self._child:
            return
        self._heard = time.monotonic()
        self.stats = message.get("stats", self.stats)
        for id, *rest in message.get("events", ()):
            call = self._calls.get(id)
            if call is not None:
                call.put(_event(id, rest))
        if "refused" in message:
            call = self._calls.get(message["refused"])
            if call is not None:
                call.put(_REFUSALS.get(message["kind"], FovealError)(message["text"]))
        if "embedded" in message:
            call = self._calls.get(message["embedded"])
            if call is not None:
                call.put(arrays[0])

    def _lost(self, child: Child, gone: asyncio.Event) -> None:
        if child is self._child and self.state != "stopped":
            self.state = "down"
            self._fail_all()
        gone.set()

    def _fail_all(self) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.put(EngineDown())

    async def _keep(self) -> None:
        """Starts the engine again whenever it is gone, and ends one that hangs."""
        failures = 0
        while True:
            try:
                await asyncio.wait_for(self._gone.wait(), timeout=5.0)
            except TimeoutError:
                if self._calls and time.monotonic() - self._heard > self.stall_s and self._child is not None:
                    log.error("the engine has said nothing for %.0f s; it is replaced", self.stall_s)
                    self._child.process.kill()
                continue
            old = self._child
            if old is not None:
                await asyncio.to_thread(old.kill)
                log.error("the engine ended with status %s; it is started again", old.process.returncode)
            await asyncio.sleep(_PAUSE_S[min(failures, len(_PAUSE_S) - 1)])
            self.restarts += 1
            try:
                await self._begin()
                failures = 0
            except FovealError as error:
                failures += 1
                log.error("the engine could not be started again: %s", error)


def _event(id: str, values: Sequence[Any]) -> Event:
    index, token, logprob, top, finish_reason, error, cached_tokens = values
    return Event(
        id=id, index=index, token=token, logprob=logprob, top=tuple((i, p) for i, p in top),
        finish_reason=finish_reason, error=error, cached_tokens=cached_tokens,
    )  # fmt: skip
