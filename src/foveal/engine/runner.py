"""Runs one step through the network: media through tower and adapter, then all tokens through the decoder."""

import logging
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.packed import Medium, Packed, Run, extra_of
from foveal.core.shapes import Float, Int64
from foveal.engine.graphs import Graphs, Row
from foveal.engine.task import Slice, Task
from foveal.engine.vision_cache import VisionCache
from foveal.families.vlm import VLM
from foveal.language.cache import Cache, Store
from foveal.language.pages import PagedStore

log = logging.getLogger(__name__)


class Runner:
    """The network of an engine. What it computes for one task does not depend on the others."""

    def __init__(self, network: VLM, vision: VisionCache, graphs: Graphs | None = None) -> None:
        self.network, self.vision, self.graphs = network, vision, graphs

    def see(self, slices: Sequence[Slice]) -> dict[Task, FovealError]:
        """Computes the visual tokens that `slices` need and nobody knows, all media at once.

        Returns what went wrong, and for whom: a medium that the tower cannot take spoils only its own tasks.
        """
        wanted: dict[bytes, list[tuple[Task, int]]] = {}
        for piece in slices:
            for medium in piece.task.needs(piece.start, piece.stop):
                if medium not in piece.task.visual:
                    wanted.setdefault(piece.task.contents[medium], []).append((piece.task, medium))
        if not wanted:
            return {}
        media = [tasks[0] for tasks in wanted.values()]
        failed: dict[Task, FovealError] = {}
        seen: list[Tensor | None]
        try:
            seen = [*self._see(media)]
        except Exception:
            log.exception("the tower fails on %d media; they are tried one by one", len(media))
            seen = []
            for one, tasks in zip(media, wanted.values(), strict=True):
                try:
                    seen += self._see([one])
                except Exception as error:
                    seen.append(None)
                    failed |= {task: FovealError(f"a medium cannot be seen: {error}") for task, _ in tasks}
        for (key, tasks), tokens in zip(wanted.items(), seen, strict=True):
            if tokens is not None:
                self.vision.put(key, tokens)
                for task, medium in tasks:
                    task.visual[medium] = tokens
        return failed

    def _see(self, media: Sequence[tuple[Task, int]]) -> list[Tensor]:
        batch = _media_alone(media)
        tokens = self.network.see(batch)
        counts = [medium.tokens for medium in batch.media]
        if sum(counts) != len(tokens):
            raise FovealError(f"the media give {len(tokens)} visual tokens, the prompt has places for {sum(counts)}.")
        # Parts of their own, so that one that is dropped does not stay in memory through another.
        return [part.clone() if len(counts) > 1 else part for part in torch.split(tokens, counts)]

    def run(self, slices: Sequence[Slice]) -> Float[Tensor, "R V"]:
        """Scores behind every scored token of the slices, in order. Valid until the next step."""
        if self.graphs is None:
            return self._run(slices)
        recorded = [_is_one_word(piece) for piece in slices]
        rows = [self._row(piece) for piece, is_row in zip(slices, recorded, strict=True) if is_row]
        rest = [piece for piece, is_row in zip(slices, recorded, strict=True) if not is_row]
        if not rest:
            return self.graphs.run(rows)
        others = self._run(rest)
        if not rows:
            return others
        words = iter(torch.split(self.graphs.run(rows), 1))
        parts = iter(torch.split(others, [piece.scored for piece in rest]))
        return torch.cat([next(words) if is_row else next(parts) for is_row in recorded])

    def _row(self, piece: Slice) -> Row:
        """A slice of one token as a row of a recorded step."""
        (token,) = piece.tokens.tolist()
        positions = self.places(piece.task, piece.start, piece.stop)[:, 0].tolist()
        return Row(token=token, positions=positions, store=cast(PagedStore, piece.task.store))

    def _run(self, slices: Sequence[Slice]) -> Float[Tensor, "R V"]:
        """`run` in one call of whatever shape."""
        network = self.network
        batch = self._batch(slices)
        visual = self._visual(slices) if batch.runs else None
        x = network.embed(batch, visual)
        positions = torch.from_numpy(batch.positions).to(network.device)
        cache = Cache.of(cast(Store, piece.task.store) for piece in slices)
        starts = batch.starts.tolist()
        hidden = network.language(x, positions, starts, cache=cache, deep=network.deepen(batch, visual))
        rows = [row for piece, stop in zip(slices, starts[1:], strict=True) for row in range(stop - piece.scored, stop)]
        if not rows:
            return hidden.new_zeros(0, network.language.config.vocab)
        if len(rows) < len(hidden):
            hidden = hidden[torch.tensor(rows, device=network.device)]
        return network.language.logits(hidden)

    def places(self, task: Task, start: int, stop: int) -> Int64[np.ndarray, "A T"]:
        """Positions of tokens `start` to `stop` of a task, of its prompt or its answer."""
        packed, prompt = task.packed, task.prompt_tokens
        if stop <= prompt:
            return packed.positions[:, start:stop]
        lengths = range(max(start, prompt), stop)
        later = self.network.places(packed, [0] * len(lengths), lengths)
        return later if start >= prompt else np.concatenate((packed.positions[:, start:], later), axis=1)

    def _batch(self, slices: Sequence[Slice]) -> Packed:
        """The tokens of the step end to end; of the media only where their visual tokens lie."""
        tokens = [piece.tokens for piece in slices]
        starts = np.cumsum([0, *map(len, tokens)])
        runs = []
        for piece, first in zip(slices, starts.tolist(), strict=False):
            for run in piece.task.runs if piece.start < piece.task.prompt_tokens else ():
                start, stop = max(run.start, piece.start), min(run.start + run.length, piece.stop)
                if start < stop:
                    runs.append(Run(start=first + start - piece.start, length=stop - start, medium=run.medium))
        places = [self.places(p.task, p.start, p.start + len(t)) for p, t in zip(slices, tokens, strict=True)]
        return Packed(
            tokens=np.concatenate(tokens),
            positions=np.concatenate(places, axis=1),
            starts=starts,
            deltas=np.concatenate([piece.task.packed.deltas for piece in slices]),
            patches=slices[0].task.packed.patches[:0],
            grids=slices[0].task.packed.grids[:0],
            runs=tuple(runs),
        )

    def _visual(self, slices: Sequence[Slice]) -> Float[Tensor, "M W"]:
        """The visual tokens of the step, in the order of `_batch`'s runs."""
        rows = []
        for piece in slices:
            task = piece.task
            for run, offset in zip(task.runs, task.offsets, strict=True):
                start, stop = max(run.start, piece.start), min(run.start + run.length, piece.stop)
                if start < stop:
                    rows.append(task.visual[run.medium][offset + start - run.start : offset + stop - run.start])
        return torch.cat(rows) if len(rows) > 1 else rows[0]


def _is_one_word(piece: Slice) -> bool:
    """Whether a step adds the last word of an answer to it and nothing else."""
    return piece.start >= piece.task.prompt_tokens and piece.start + 1 == piece.stop and piece.scored == 1


def _media_alone(media: Sequence[tuple[Task, int]]) -> Packed:
    """A pack of media only, for `VLM.see`."""
    records: list[Medium] = [task.packed.media[number] for task, number in media]
    extras = [extra_of(task.packed, number) for task, number in media]
    names = dict.fromkeys(name for extra in extras for name in extra)
    first = media[0][0].packed
    return Packed(
        tokens=np.zeros(0, np.int64),
        positions=first.positions[:, :0],
        starts=np.zeros(1, np.int64),
        deltas=np.zeros(0, np.int64),
        patches=np.concatenate([task.packed.patches[task.patches[number]] for task, number in media]),
        grids=np.stack([task.packed.grids[number] for task, number in media]),
        media=tuple(records),
        extra={name: np.concatenate([e[name] for e in extras if name in e]) for name in names},
    )
