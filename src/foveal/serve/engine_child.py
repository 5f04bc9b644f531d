"""The child that holds the model: one engine, fed and heard over a socket.

A thread receives requests, the main thread steps. What ends the connection ends the process, so an engine never
outlives its server; what ends the process ends the connection, so a server knows at once.
"""

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from foveal.core.errors import BudgetError, ContextError, FovealError, InputError
from foveal.engine.dual import Dual
from foveal.engine.engine import Engine
from foveal.engine.load import load
from foveal.engine.model import Model
from foveal.engine.options import EngineOptions
from foveal.engine.request import Constraint, Event, Sampling
from foveal.processing.pictures import Pictures, Texts
from foveal.serve.children import parent
from foveal.serve.grammar import Vocabulary
from foveal.serve.wire import Channel, WireError, read_pack

log = logging.getLogger(__name__)

STATS_S = 0.5
_KINDS = ((BudgetError, "budget"), (ContextError, "context"), (InputError, "input"))
Job = tuple[dict[str, Any], list[np.ndarray], list[Constraint] | None]


def main() -> None:
    """Serves requests until the server is gone."""
    channel = parent()
    settings, _ = channel.receive()
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    try:
        model = load(
            settings["folder"],
            dtype=settings["dtype"],
            device=settings["device"],
            adapter=settings["adapter"],
            quantize=settings["quantize"],
        )
        if isinstance(model, Model):
            options = EngineOptions(**{k: v for k, v in settings["engine"].items() if v is not None})
            serve: Any = _Talker(channel, model, options)
        elif isinstance(model, Dual):
            serve = _Embedder(channel, model)
        else:
            raise InputError("this model names pictures, which has no place in the API; use Python.")
    except FovealError as error:
        channel.send({"failed": "config", "text": str(error)})
        return
    channel.send({"ready": True})
    inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, inbox, serve), daemon=True).start()
    with contextlib.suppress(WireError):  # the server is gone
        serve.run(inbox)
    # Threads of libraries may be in the middle of something; there is nothing left to save.
    os._exit(0)


def _listen(channel: Channel, inbox: "queue.SimpleQueue[Job | None]", serve: Any) -> None:
    """Receives, and prepares what takes time, so that no step waits for it."""
    try:
        while True:
            message, arrays = channel.receive()
            try:
                inbox.put((message, arrays, serve.constraint(message)))
            except FovealError as error:
                _refuse(channel, message["id"], error)
    except WireError:
        inbox.put(None)


def _refuse(channel: Channel, id: str, error: FovealError) -> None:
    kind = next((name for cls, name in _KINDS if isinstance(error, cls)), "internal")
    channel.send({"refused": id, "kind": kind, "text": str(error)})


class _Talker:
    """Steps an engine."""

    def __init__(self, channel: Channel, model: Model, options: EngineOptions) -> None:
        self._channel, self._model = channel, model
        self._engine = Engine(model, options)
        self._vocabulary: Vocabulary | None = None
        self._told = 0.0

    def constraint(self, message: Mapping[str, Any]) -> list[Constraint] | None:
        """What each answer of a request has to look like."""
        grammar = message.get("grammar")
        if grammar is None:
            return None
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._model.processor.tokenizer, sorted(self._model.stop_ids))
        return [self._vocabulary.constraint(grammar) for _ in range(message["n"])]

    def run(self, inbox: "queue.SimpleQueue[Job | None]") -> None:
        """Until the connection ends."""
        while True:
            while not (self._engine.busy and inbox.empty()):
                job = inbox.get()
                if job is None:
                    return
                self._take(*job)
            events = self._engine.step()
            if events:
                self._channel.send({"events": [_event(e) for e in events], **self._stats()})

    def _take(self, message: dict[str, Any], arrays: list[np.ndarray], constraint: list[Constraint] | None) -> None:
        if message["do"] == "abort":
            self._engine.abort(message["id"])
            self._channel.send({"ended": message["id"], **self._stats(now=not self._engine.busy)})
            return
        try:
            sampling = Sampling(**{**message["sampling"], "stop": tuple(message["sampling"]["stop"])})
            packed = read_pack(message["packed"], arrays)
            self._engine.add(packed, sampling, id=message["id"], n=message["n"], constraint=constraint)
        except FovealError as error:
            _refuse(self._channel, message["id"], error)

    def _stats(self, *, now: bool = False) -> dict[str, Any]:
        """Now and then, and when the engine comes to rest."""
        if not now and self._engine.busy and time.monotonic() - self._told < STATS_S:
            return {}
        self._told = time.monotonic()
        return {"stats": asdict(self._engine.stats())}


def _event(e: Event) -> list[Any]:
    return [e.id, e.index, e.token, e.logprob, e.top, e.finish_reason, e.error, e.cached_tokens]


class _Embedder:
    """Vectors of pictures and texts, one request after the other."""

    def __init__(self, channel: Channel, model: Dual) -> None:
        self._channel, self._model = channel, model

    def constraint(self, message: Mapping[str, Any]) -> None:
        return None

    def run(self, inbox: "queue.SimpleQueue[Job | None]") -> None:
        """Until the connection ends."""
        while (job := inbox.get()) is not None:
            message, arrays, _ = job
            if message["do"] != "embed":
                continue
            try:
                vectors = self._vectors(message["what"], arrays)
                self._channel.send({"embedded": message["id"]}, [vectors])
            except FovealError as error:
                _refuse(self._channel, message["id"], error)
            except Exception:
                log.exception("vectors cannot be computed")
                _refuse(self._channel, message["id"], FovealError("the vectors cannot be computed."))

    def _vectors(self, what: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
        first, second = arrays
        batch = (
            Texts(tokens=first, starts=second) if what == "text" else Pictures(patches=first, grids=second, media=())
        )
        return np.ascontiguousarray(self._model.forward(batch)[0].float().cpu().numpy())


if __name__ == "__main__":
    logging.basicConfig(format="foveal engine: %(message)s", level=logging.WARNING, stream=sys.stderr)
    main()
