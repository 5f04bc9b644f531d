"""Several callers, in threads or in turns, at one engine."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from foveal.core.packed import Packed
from foveal.engine.engine import Engine
from foveal.engine.request import Event, Sampling


class Desk:
    """Hands every caller the events of its own requests. Whoever waits for events makes the engine step for all."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.RLock()
        self._boxes: dict[str, list[Event]] = {}  # events that wait for their caller

    def ask(
        self,
        packs: Sequence[Packed],
        samplings: Sequence[Sampling],
        *,
        chunk: int | None = None,
        ended: Callable[[int], bool] = lambda _: False,
    ) -> Iterator[list[tuple[int, Event]]]:
        """Runs requests to their ends and yields (number of the request in this call, what is new of it) step by step.

        `ended` may say of a request that its caller has heard enough. A caller who stops asking ends its requests.
        """
        box: list[Event] = []
        numbers: dict[str, int] = {}
        try:
            with self._lock:
                for number, (packed, sampling) in enumerate(zip(packs, samplings, strict=True)):
                    id = self.engine.add(packed, sampling, chunk=chunk)
                    numbers[id] = number
                    self._boxes[id] = box
            while numbers:
                with self._lock:
                    while not box:
                        self._step()
                    news = [*box]
                    box.clear()
                yield [(numbers[event.id], event) for event in news]
                over = {event.id for event in news if event.finish_reason is not None}
                self._end(numbers, [id for id, number in numbers.items() if id in over or ended(number)])
        finally:
            self._end(numbers, [*numbers])

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Nothing is computed meanwhile."""
        with self._lock:
            yield

    def _step(self) -> None:
        for event in self.engine.step():
            self._boxes[event.id].append(event)

    def _end(self, numbers: dict[str, int], ids: Sequence[str]) -> None:
        with self._lock:
            for id in ids:
                self.engine.abort(id)
                del numbers[id], self._boxes[id]
