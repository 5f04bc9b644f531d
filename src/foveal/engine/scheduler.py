"""What the next step computes: tokens being written first, then prompts, then who waits."""

import bisect
import logging
from collections.abc import Sequence

from foveal.core.errors import ContextError, EngineFull
from foveal.engine.blocks import BlockPool
from foveal.engine.options import EngineOptions
from foveal.engine.task import Slice, Task
from foveal.engine.vision_cache import VisionCache
from foveal.language.cache import Store
from foveal.language.pages import PagedStore, Pages

log = logging.getLogger(__name__)


class Scheduler:
    """Who runs, who waits, and whose turn it is.

    Tasks run in the order in which their requests came. When memory for keys and values is short, the latest of them
    goes back to waiting and is computed again later; what it has said stays said.
    """

    def __init__(
        self,
        options: EngineOptions,
        pool: BlockPool,
        vision: VisionCache,
        *,
        depth: int,
        pages: Pages | None = None,
    ) -> None:
        self.options, self.pool, self.vision, self.depth, self.pages = options, pool, vision, depth, pages
        self.running: list[Task] = []
        self.waiting: list[Task] = []  # both in order of arrival
        self.preemptions = self.prefix_tokens = 0

    def check(self, tokens: int, count: int) -> None:
        """Refuses what could never run, or what finds no place to wait."""
        room = self.pool.total * self.pool.block_tokens
        if self.pool.blocks(tokens) > self.pool.total:
            raise ContextError(
                f"prompt and answer may get to {tokens} tokens, but the engine's cache holds {room}; shorten the "
                "prompt, lower max_tokens, or raise cache_bytes of the engine."
            )
        most = self.options.max_waiting
        if most is not None and sum(1 + len(t.mates) for t in self.waiting) + count > most + self._places():
            raise EngineFull(
                f"{len(self.waiting)} requests are waiting, and the engine lets {most} wait; try again later."
            )

    def _places(self) -> int:
        return max(0, self.options.max_requests - len(self.running))

    def add(self, task: Task) -> None:
        """Lets a task wait for its turn."""
        bisect.insort(self.waiting, task, key=lambda t: (t.arrival, t.index))

    def schedule(self) -> list[Slice]:
        """The tokens of the next step. Whoever is named in it has memory for them."""
        left = self.options.step_tokens
        turn = _Turn(self.options.vision_tokens)
        for task in sorted(self.running, key=lambda t: t.pending > 1):
            if left < 1:
                break
            if task.store is not None:  # nobody has taken its place
                left -= self._take(task, left, turn)
        while self.waiting and left > 0 and len(self.running) < self.options.max_requests:
            if not self._admit(self.waiting[0]):
                break
            left -= self._take(self.running[-1], left, turn)
        return [piece for piece in turn.slices if piece.task.store is not None]

    def _take(self, task: Task, left: int, turn: "_Turn") -> int:
        """Gives a task as much of the step as it can use; returns how many tokens that is."""
        start = task.computed
        stop = start + min(task.pending, left, task.chunk or left)
        if start < task.prompt_tokens:
            stop = turn.visible(task, start, stop, self.vision)
        if stop == start:
            return 0
        guess: list[int] = []
        if task.lookup is not None and stop == len(task.tokens):
            most = min(self.options.speculate, task.most_tokens - stop, left - (stop - start))
            guess = task.lookup.guess(task.tokens, most) if most > 0 else []
        if not self._grow(task, stop + len(guess)):
            return 0
        turn.slices.append(Slice(task=task, start=start, stop=stop, guess=tuple(guess)))
        return stop - start + len(guess)

    def _admit(self, task: Task) -> bool:
        """Lets a waiting task run, if there is memory for all it has to compute, with what is known of it already."""
        blocks = self.pool.blocks(min(len(task.tokens) + 1, task.most_tokens))
        spare = len(self.running)  # a block for each that is already running, or it would soon take this one's place
        if self.pool.total - self.pool.working < blocks + spare or not self.pool.reserve(blocks):
            return False
        self.waiting.remove(task)
        self.start(task, self.new_store(blocks), blocks)
        usable = (len(task.tokens) - 1) // self.pool.block_tokens  # one token has to be left, to be scored
        found = self.pool.match(task.keys[:usable])
        self.pool.load(task.store, found)  # type: ignore[arg-type]
        task.held = len(found)
        self.prefix_tokens += task.computed
        if len(task.tokens) == task.prompt_tokens:
            task.cached_tokens = task.computed
        return True

    def new_store(self, blocks: int) -> Store:
        """An empty store with room for so many blocks; in pages where the engine has them."""
        capacity = blocks * self.pool.block_tokens
        if self.pages is not None:
            return PagedStore(self.pages, capacity=capacity)
        return Store(self.depth, capacity=capacity, slabs=self.pool.slabs)

    def start(self, task: Task, store: Store, blocks: int) -> None:
        """A task runs on a store for which blocks are reserved."""
        task.store, task.blocks, task.held = store, blocks, 0
        self.running.append(task)

    def _grow(self, task: Task, tokens: int) -> bool:
        """Makes room for so many tokens, at the cost of later tasks; False when the task itself had to give way."""
        pool = self.pool
        needed = pool.blocks(tokens)
        if needed > task.blocks:
            # An eighth more than is there, so that it is copied once in so many tokens.
            wanted = min(max(needed, task.blocks + task.blocks // 8), pool.blocks(task.most_tokens))
            while not pool.reserve(wanted - task.blocks):
                if wanted > needed:
                    wanted = needed
                    continue
                latest = max(self.running, key=lambda t: (t.arrival, t.index))
                self.preempt(latest)
                if latest is task:
                    return False
            task.blocks = wanted
        if task.store is not None:
            task.store.capacity = task.blocks * pool.block_tokens
        return True

    def preempt(self, task: Task) -> None:
        """Sends a task back to wait."""
        log.debug("request %s gives way after %d tokens", task.id, task.computed)
        self.preemptions += 1
        self.stop(task)
        self.add(task)

    def stop(self, task: Task) -> None:
        """Ends a task's run: its memory is free, and its whole blocks can be found again."""
        if task.store is not None:
            self.running.remove(task)
            self.pool.release(task.blocks)
            self.pool.leave(task.store, task.keys[: task.held])
        task.store, task.blocks, task.held, task.visual = None, 0, 0, {}

    def drop(self, task: Task) -> None:
        """Forgets a task wherever it is."""
        if task in self.waiting:
            self.waiting.remove(task)
        self.stop(task)

    def computed(self, task: Task, keys: Sequence[bytes] = ()) -> None:
        """Takes note of what a step computed: whole blocks can be found from now on."""
        if task.store is None:
            return
        task.keys += keys
        whole = min(len(task.keys), task.computed // self.pool.block_tokens)
        self.pool.hold(task.store, task.keys[task.held : whole], task.held)
        task.held = max(task.held, whole)


class _Turn:
    """The slices of one step, and the media that it has to look at."""

    def __init__(self, patches: int) -> None:
        self.slices: list[Slice] = []
        self._left, self._seen = patches, set[bytes]()

    def visible(self, task: Task, start: int, stop: int, vision: VisionCache) -> int:
        """How far the task can come, at most to `stop`, with the media that this step has room for."""
        for medium in task.needs(start, stop):
            key = task.contents[medium]
            if medium in task.visual or key in self._seen:
                continue
            known = vision.get(key)
            if known is not None:
                task.visual[medium] = known
                continue
            size = task.patches[medium].stop - task.patches[medium].start
            if self._seen and size > self._left:
                return max(start, next(r.start for r in task.runs if r.medium == medium))
            self._seen.add(key)
            self._left -= size
        return stop
