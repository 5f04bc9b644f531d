"""Steps that an accelerator records once and plays again (CUDA graphs), so that it does not wait for every kernel.

When a step of the engine adds one token to an answer, the answer is a row of a `FixedStep`. There is one such step for
every bucket, a number of rows and a number of pages, both powers of two times the least. It is recorded when it is
first needed, and again when the network has another form.

What is recorded never runs on a stranger's memory: keys and values lie in `Pages`, which do not move, inputs and scores
belong to the step, and weights are looked at before every play.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from foveal.core.errors import InputError
from foveal.core.shapes import Float
from foveal.engine.options import EngineOptions
from foveal.engine.prefix import weights_key
from foveal.families.vlm import VLM
from foveal.language.fixed import FixedStep, has_fixed_shapes
from foveal.language.pages import PagedStore, Pages

log = logging.getLogger(__name__)

LEAST_TOKENS = 256
"""Tokens of a sequence that the smallest bucket has room for."""

GATHER_BYTES = 2**28
"""Keys and values that a layer gathers at a time; rows that would pass this bound are played in several groups."""

SHARE = 0.5
"""Of the free memory, which pages take if nobody said how much; intermediate results and recordings need the rest."""

Play = Callable[[], None]


@runtime_checkable
class Capture(Protocol):
    """Records what a function does on a device; what it returns does that again, on the same tensors."""

    def __call__(self, compute: Play) -> Play: ...

    def forget(self) -> None:
        """Nothing that was recorded so far is played any more."""


class CudaCapture:
    """Records by `torch.cuda.CUDAGraph`. All recordings use one pool of memory: nothing in it outlives a play."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.forget()

    def forget(self) -> None:
        """Takes a pool of its own for what comes: one whose recordings are all gone may not be used again."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Play) -> Play:
        with torch.cuda.device(self.device):
            # Once without recording, beside the current stream: libraries choose their kernels and take memory.
            beside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                compute()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                compute()
        return graph.replay


def capture_on(device: torch.device) -> Capture | None:
    """What records steps on a device; None where nothing does."""
    return CudaCapture(device) if device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer's next token, its positions, and the store of what is before it."""

    token: int
    positions: Sequence[int]
    store: PagedStore


def free_bytes(device: torch.device) -> int | None:
    """Memory that nobody has taken on a device of its own; None where it is the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def graphs_for(network: VLM, options: EngineOptions, blocks: int, block_bytes: int) -> "Graphs | None":
    """Recorded steps for an engine of so many blocks where they are wanted and possible; None elsewhere.

    All blocks are taken at once. So if nobody said how many, there are no more than half of the free memory holds.

    Raises `InputError` where `options.graphs` asks for them and they are not possible.
    """
    capture = None if options.graphs is False else capture_on(network.device)
    fixed = has_fixed_shapes(network.language)
    if capture is None or not fixed:
        if options.graphs:
            reason = "this family's steps have no fixed shapes" if fixed is False else f"{network.device} records none"
            raise InputError(f"graphs is True, but {reason}; leave it None, and steps are recorded where they can be.")
        return None
    free = free_bytes(network.device) if options.cache_bytes is None else None
    if free is not None and blocks * block_bytes > free * SHARE:
        blocks = max(1, int(free * SHARE) // block_bytes)
        log.info("keys and values of %d tokens fit into half of the free memory", blocks * options.block_tokens)
    pages = Pages(blocks, options.block_tokens, network.language.config.depth)
    return Graphs(network, pages, most_rows=options.max_requests, capture=capture)


class Graphs:
    """The recorded steps of an engine.

    Args:
        network: a network whose decoder `has_fixed_shapes`.
        pages: where its stores lie.
        most_rows: answers in the making at once.
        capture: what records.
    """

    def __init__(self, network: VLM, pages: Pages, *, most_rows: int, capture: Capture) -> None:
        self._network, self.pages, self._device = network, pages, network.device
        self._capture: Capture | None = capture
        self._most_rows = _bucket(most_rows, 1)
        self._steps: dict[tuple[int, int], tuple[FixedStep, Play]] = {}
        self._scores: Tensor | None = None
        self._tensors: list[Tensor] = []
        self._addresses: list[int] = []
        self._form = b""
        self._stale = False
        self.played = 0

    def run(self, rows: Sequence[Row]) -> Float[Tensor, "R V"]:
        """Scores behind every row's token, which its store has then. Valid until the next call."""
        if [tensor.data_ptr() for tensor in self._tensors] != self._addresses:
            self._drop()
        groups = self._groups(rows)
        if len(groups) == 1:
            return self._play(groups[0][1], rows)[: len(rows)]
        scores: list[Tensor] = [torch.empty(0)] * len(rows)
        for numbers, bucket in groups:
            found = self._play(bucket, [rows[number] for number in numbers])
            for number, row in zip(numbers, found.clone(), strict=False):
                scores[number] = row
        return torch.stack(scores)

    def refresh(self, *, idle: bool) -> bool:
        """Forgets what was recorded if the network has another form by now; call it when a request comes.

        When nobody runs (`idle`) keys and values are forgotten, too, and True is returned: all pieces have to go, which
        nobody would find again.
        """
        form = _form(self._network)
        if form != self._form:
            self._drop()
            self._stale, self._form = self._stale or bool(self._form), form
        if self._stale and idle:
            self._stale = False
            return True
        return False

    def _drop(self) -> None:
        if self._steps and self._capture is not None:
            self._capture.forget()
        self._steps.clear()
        self._scores = None
        self._tensors, self._addresses = [], []

    def _groups(self, rows: Sequence[Row]) -> list[tuple[list[int], tuple[int, int]]]:
        """Which rows are played together, and in which bucket: the longest first, as many as memory allows."""
        size = self.pages.page_tokens
        most_tokens = max(1, GATHER_BYTES * self.pages.depth // self.pages.token_bytes)
        order = sorted(range(len(rows)), key=lambda number: -rows[number].store.length)
        groups = []
        while order:
            needed = self.pages.count(rows[order[0]].store.length + 1)
            reach = _bucket(needed, self.pages.count(LEAST_TOKENS))
            fitting = max(1, most_tokens // (reach * size))
            count = min(len(order), self._most_rows, 1 << (fitting.bit_length() - 1))
            groups.append((order[:count], (_bucket(count, 1), reach)))
            order = order[count:]
        return groups

    def _play(self, bucket: tuple[int, int], rows: Sequence[Row]) -> Tensor:
        """The scores of one group, in a tensor that the next play overwrites."""
        for row in rows:
            row.store.reach(row.store.length + 1)
        known = self._steps.get(bucket)
        step = self._made(bucket, len(rows[0].positions)) if known is None else known[0]
        step.load([(row.token, row.store.length, row.positions, row.store.numbers) for row in rows])
        if known is None:
            known = self._steps[bucket] = (step, self._recorded(step))
        known[1]()
        self.played += 1
        for row in rows:
            row.store.length += 1
        return step.scores

    def _made(self, bucket: tuple[int, int], axes: int) -> FixedStep:
        language = self._network.language
        if self._scores is None:
            vocab, device = language.config.vocab, self._network.device
            self._scores = torch.empty(self._most_rows, vocab, dtype=self._network.dtype, device=device)
            self._tensors = [*self._network.language.parameters(), *self._network.language.buffers()]
            self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        rows, reach = bucket
        return FixedStep(language, self.pages, self._scores, rows=rows, reach=reach, axes=axes)

    def _recorded(self, step: FixedStep) -> Play:
        """The recorded step; if it cannot be recorded the step itself, from then on for all."""
        if self._capture is None or self._network.device != self._device:  # a recording elsewhere would be empty
            return step.compute
        try:
            play = self._capture(step.compute)
        except Exception:
            log.exception("a step of %d rows cannot be recorded; steps are computed as they are", step.rows)
            self._capture = None
            return step.compute
        log.info("recorded a step of %d rows with %d tokens each", step.rows, step.reach * self.pages.page_tokens)
        return play


def _bucket(count: int, least: int) -> int:
    """`least` times the smallest power of two that makes at least `count`."""
    return least << (-(-count // least) - 1).bit_length()


def _form(network: nn.Module) -> bytes:
    """What a recording depends on: modules, weights and their places, and whether updates are merged."""
    merged = [module.merged for module in network.modules() if hasattr(module, "merged")]
    return weights_key(network) + repr(merged).encode()
