"""The engine: many requests at once, one step at a time."""

import itertools
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from foveal.core.errors import ContextError, InputError
from foveal.core.packed import Packed
from foveal.engine.blocks import BlockPool
from foveal.engine.graphs import graphs_for
from foveal.engine.options import EngineOptions
from foveal.engine.prefix import chain, content_key, rows_of_media
from foveal.engine.prepare import weights_key
from foveal.engine.request import Constraint, Event, Generation, Sampling
from foveal.engine.runner import Runner
from foveal.engine.sampling import best, is_plain
from foveal.engine.scheduler import Scheduler
from foveal.engine.speak import chosen, sampled, speak
from foveal.engine.speculate import Lookup
from foveal.engine.stats import EngineStats
from foveal.engine.task import Slice, Task
from foveal.engine.vision_cache import VisionCache
from foveal.language.cache import Store

if TYPE_CHECKING:
    from foveal.engine.model import Model

log = logging.getLogger(__name__)

LEAST_CACHE_BYTES = 2**30


class Engine:
    """Answers requests to one model, as many at once as its options allow. Not for several threads at once.

    `add` takes a request, `step` computes a part of all that are running and says what is new, `abort` ends one.
    """

    def __init__(self, model: "Model", options: EngineOptions = EngineOptions()) -> None:  # noqa: B008 (frozen)
        self.options = options
        # The parts of the model, not the model: it holds an engine itself, and is to be gone when its user drops it.
        self._network, self._stops, self._answer = model.prepared, model.stop_ids, model.answer_tokens
        config = model.prepared.language.config
        token_bytes = config.cache_values * model.prepared.dtype.itemsize
        context = model.family.context(model.config)
        size = options.block_tokens * token_bytes
        if options.cache_bytes is None:
            total = max(LEAST_CACHE_BYTES // size, -(-context // options.block_tokens))
        else:
            total = options.cache_bytes // size
        if total < 1:
            raise InputError(
                f"cache_bytes is {options.cache_bytes}, but one block of {options.block_tokens} tokens takes {size} "
                "bytes; raise it."
            )
        self._graphs = graphs_for(model.prepared, options, total, size)
        pages = None if self._graphs is None else self._graphs.pages
        self._pool = BlockPool(total if pages is None else pages.total, options.block_tokens)
        self._vision = VisionCache(options.vision_cache_bytes)
        self._scheduler = Scheduler(options, self._pool, self._vision, depth=config.depth, pages=pages)
        self._runner = Runner(model.prepared, self._vision, self._graphs)
        self._context = context
        self._banned_ids = model.processor.banned_ids
        self._banned = torch.tensor(sorted(self._banned_ids), dtype=torch.long)
        self._arrivals = itertools.count()
        self._ids: set[str] = set()
        self._prompt_tokens = self._answer_tokens = self._guessed = self._guessed_right = 0

    def settle(self, packed: Packed, sampling: Sampling) -> Sampling:
        """`sampling` with the length and the seed that an answer to `packed` will have.

        Where `max_tokens` is None an answer ends after the model's default length, or at the end of the context.

        Raises:
            ContextError: prompt and answer cannot fit into the model's context or the engine's cache.
        """
        if len(packed) != 1:
            raise InputError(f"a request is one sequence; this pack has {len(packed)}.")
        length, wanted = len(packed.tokens), sampling.max_tokens
        room = self._context - length
        if room < 1 or (wanted or 0) > room:
            raise ContextError(
                f"a prompt of {length} tokens and an answer of {wanted or 1} pass the context of "
                f"{self._context}; shorten the prompt, lower max_pixels or frames, or lower max_tokens."
            )
        if wanted is None:
            held = self._pool.total * self._pool.block_tokens - length
            wanted = max(1, min(self._answer, room, held))
        self._scheduler.check(length + wanted, 0)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        return replace(sampling, max_tokens=wanted, seed=seed)

    def add(
        self,
        packed: Packed,
        sampling: Sampling,
        *,
        id: str | None = None,
        n: int = 1,
        constraint: Constraint | Sequence[Constraint] | None = None,
        chunk: int | None = None,
    ) -> str:
        """Takes a request; nothing is computed yet.

        Args:
            packed: one sequence, from `Model.process`.
            sampling: how its answers are sampled.
            id: what to call it; made up if not given.
            n: answers to give. They share the prompt's computation; answer i is sampled with the seed plus i.
            constraint: what may be said; for n answers a list of n.
            chunk: most prompt tokens of it to compute in a step.

        Returns:
            Its id, for `abort` and in events.

        Raises:
            ContextError: prompt and answer cannot fit; InputError: an argument is wrong; EngineFull: too many wait.
        """
        id = secrets.token_hex(8) if id is None else id
        if id in self._ids:
            raise InputError(f"request {id!r} is already here; take another id.")
        if type(n) is not int or not 1 <= n <= self.options.max_requests:
            raise InputError(f"n is {n!r}; expected 1 to {self.options.max_requests}, the engine's max_requests.")
        if chunk is not None and (type(chunk) is not int or chunk < 1):
            raise InputError(f"chunk={chunk!r} needs to be a whole number of at least 1.")
        constraints = [constraint] if constraint is None or isinstance(constraint, Constraint) else [*constraint]
        if constraints != [None] and len(constraints) != n:
            raise InputError(f"{len(constraints)} constraints for {n} answers; each answer needs one of its own.")
        settled = self.settle(packed, sampling)
        patches = rows_of_media(packed)
        self._scheduler.check(len(packed.tokens) + cast(int, settled.max_tokens), n)
        weights = weights_key(self._network)
        if self._graphs is not None and self._graphs.refresh(idle=not self._scheduler.running):
            self._pool.clear()
            self._graphs.pages.forget()
        contents = [content_key(packed, medium, rows, weights) for medium, rows in enumerate(patches)]
        keys: list[bytes] = []
        if self.options.prefix_cache:
            marks = self._network.marks(packed.positions)
            size = self.options.block_tokens
            keys = chain(weights, packed.tokens, marks, size, runs=packed.runs, contents=contents)
        arrival = next(self._arrivals)
        first, *mates = (
            Task(
                id=id,
                index=index,
                arrival=arrival,
                packed=packed,
                generation=Generation(
                    sampling=replace(settled, seed=cast(int, settled.seed) + index),
                    prompt=packed.tokens.tolist(),
                    max_tokens=cast(int, settled.max_tokens),
                ),
                patches=patches,
                contents=contents,
                keys=[*keys],
                constraint=constraints[index if len(constraints) > 1 else 0],
                chunk=chunk,
                lookup=Lookup(self._banned_ids) if self.options.speculate else None,
            )
            for index in range(n)
        )
        first.mates = mates
        self._ids.add(id)
        self._scheduler.add(first)
        return id

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Computes the next part of all running requests; returns what is new, or nothing when there is no request."""
        slices = self._scheduler.schedule()
        if not slices:
            return []
        failed = self._runner.see(slices)
        events = [event for task, error in failed.items() for event in self._fail(task, error)]
        slices = [piece for piece in slices if piece.task not in failed]
        if not slices:
            return events
        try:
            scores = self._runner.run(slices)
        except Exception as error:
            log.exception("a step of %d requests fails", len(slices))
            return events + [event for piece in slices for event in self._fail(piece.task, error)]
        for piece in slices:
            self._prompt_tokens += max(0, min(piece.stop, piece.task.prompt_tokens) - piece.start)
            self._scheduler.computed(piece.task)
            piece.task.forget_media()
        return events + self._say(slices, scores)

    @torch.inference_mode()
    def abort(self, id: str) -> None:
        """Ends a request: no further step works for it. Unknown ids are ignored."""
        self._ids.discard(id)
        for task in [t for t in (*self._scheduler.running, *self._scheduler.waiting) if t.id == id]:
            self._leave(task)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._scheduler.running or self._scheduler.waiting)

    def stats(self) -> EngineStats:
        """What the engine does and holds now."""
        scheduler, pool, vision = self._scheduler, self._pool, self._vision
        stores = [task.store.bytes for task in scheduler.running if task.store is not None]
        return EngineStats(
            running=len(scheduler.running),
            waiting=sum(1 + len(task.mates) for task in scheduler.waiting),
            blocks_in_use=pool.working,
            blocks_cached=pool.kept,
            blocks_free=pool.free,
            block_tokens=pool.block_tokens,
            cache_bytes=sum(stores) + pool.kept_bytes,
            vision_hits=vision.hits,
            vision_misses=vision.misses,
            vision_bytes=vision.bytes,
            prefix_tokens=scheduler.prefix_tokens,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            answer_tokens=self._answer_tokens,
            guessed=self._guessed,
            guessed_right=self._guessed_right,
        )

    def _say(self, slices: Sequence[Slice], scores: Tensor) -> list[Event]:
        """Chooses the next tokens behind the scored ones."""
        pieces = [piece for piece in slices if piece.scored]
        plain = [p.task.constraint is None and is_plain(p.task.generation.sampling) for p in pieces]
        greedy = best(scores, self._banned) if any(plain) else []
        rows = scores if all(plain) else scores.float().cpu()
        events: list[Event] = []
        first = 0
        for piece, is_greedy in zip(pieces, plain, strict=True):
            last = first + piece.scored
            own, tokens = rows[first:last], greedy[first:last] if is_greedy else None
            first = last
            events += self._fork(piece.task, own, tokens)
            events += self._continue(piece, own, tokens)
        return events

    def _continue(self, piece: Slice, rows: Tensor, tokens: Sequence[int | None] | None) -> list[Event]:
        """The tokens of one answer: the one that follows, and as many more as were guessed right."""
        task, events = piece.task, []
        for number, row in enumerate(rows):
            choose = partial(sampled, task, row, self._banned) if tokens is None else partial(chosen, tokens[number])
            event = speak(task, choose, self._stops)
            events.append(event)
            self._answer_tokens += event.finish_reason != "error"
            if event.finish_reason is not None:
                break
            if number < len(piece.guess) and piece.guess[number] != event.token:
                break
        self._guessed += len(piece.guess)
        self._guessed_right += len(events) - 1
        if task.store is not None:
            task.store.length = min(task.store.length, len(task.tokens) - 1)
        if events[-1].finish_reason is not None:
            self._finish(task)
        return events

    def _fork(self, task: Task, rows: Tensor, tokens: Sequence[int | None] | None) -> list[Event]:
        """The other answers of a request go their own ways from the end of the prompt that was computed for all."""
        events: list[Event] = []
        mates, task.mates = task.mates, []
        for mate in mates:
            blocks = self._pool.blocks(min(mate.prompt_tokens + 1, mate.most_tokens))
            places = len(self._scheduler.running) < self.options.max_requests
            if not places or not self._pool.reserve(blocks):
                self._scheduler.add(mate)
                continue
            store = self._scheduler.new_store(blocks)
            store.append([cast(Store, task.store).view(0, mate.prompt_tokens)])
            self._scheduler.start(mate, store, blocks)
            mate.cached_tokens = mate.prompt_tokens
            self._scheduler.computed(mate)
            events += self._continue(Slice(task=mate, start=mate.computed, stop=mate.computed), rows[:1], tokens)
        return events

    def _finish(self, task: Task) -> None:
        """An answer has ended. What it left can be found again by a prompt that goes on from it."""
        if self.options.prefix_cache and task.store is not None:
            known, size = len(task.keys), self.options.block_tokens
            start = known * size
            whole = task.computed // size * size
            if task.generation.finish_reason is not None and whole > start:
                tokens = np.array(task.tokens[start:whole], dtype=np.int64)
                marks = self._network.marks(self._runner.places(task, start, whole))
                before = task.keys[-1] if task.keys else weights_key(self._network)
                runs, contents = task.runs, task.contents
                keys = chain(before, tokens, marks, size, start=start, runs=runs, contents=contents)
                self._scheduler.computed(task, keys)
        self._leave(task)

    def _fail(self, task: Task, error: Exception) -> list[Event]:
        """Ends a request's answers by an error."""
        tasks = [task, *task.mates]
        self._leave(task)
        return [Event(id=t.id, index=t.index, token=-1, finish_reason="error", error=str(error)) for t in tasks]

    def _leave(self, task: Task) -> None:
        self._scheduler.drop(task)
        if not any(t.id == task.id for t in (*self._scheduler.running, *self._scheduler.waiting)):
            self._ids.discard(task.id)
