"""Rotary positions of a sequence, from the places of its visual tokens.

Positions are made once, per sequence, before sequences are packed, so that packing cannot move them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from foveal.core.shapes import Int64


@dataclass(frozen=True, kw_only=True)
class Block:
    """Visual tokens of one medium in a sequence.

    Attributes:
        start: index of its first token in the sequence.
        grid: visual tokens in time, height and width, after merging; their product is its token count.
        times_s: times of the sampled frames in seconds; empty for an image.
        fps: frames per second after sampling, on average; 0 for an image.
    """

    start: int
    grid: tuple[int, int, int]
    times_s: tuple[float, ...] = ()
    fps: float = 0.0


@runtime_checkable
class Positions(Protocol):
    """How a family numbers the tokens of one sequence."""

    @property
    def axes(self) -> int:
        """A: 3 for M-RoPE (time, height, width), 1 for plain positions."""
        ...

    def place(self, length: int, blocks: Sequence[Block]) -> tuple[Int64[np.ndarray, "A T"], int]:
        """Positions of `length` tokens, and what to add to a later token's index to get its position."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plain:
    """0, 1, 2, ... for text and visual tokens alike."""

    axes: int = 1

    def place(self, length: int, blocks: Sequence[Block]) -> tuple[Int64[np.ndarray, "A T"], int]:
        return np.arange(length, dtype=np.int64)[None], 0


@dataclass(frozen=True, kw_only=True)
class PlaceInPrompt:
    """0, 1, 2, ... on the first axis, and the length of the whole prompt on the second.

    For rotary bases and attention factors that grow with the prompt (Qwen's dynamic NTK and logn attention): every
    token carries what they depend on, so a batch, a cache or a chunk cannot change them.
    """

    axes: int = 2

    def place(self, length: int, blocks: Sequence[Block]) -> tuple[Int64[np.ndarray, "A T"], int]:
        places = np.arange(length, dtype=np.int64)
        return np.stack((places, np.full_like(places, length))), 0


@dataclass(frozen=True, kw_only=True)
class MRope:
    """Multimodal rotary positions (Qwen2-VL paper, section 2.1, figure 3).

        text text | image 2 x 2 | text        a video gives every frame its own time
      t  0    1   | 2 2 2 2     | 4
      h  0    1   | 2 2 3 3     | 4
      w  0    1   | 2 3 2 3     | 4

    A text token has one number on all axes. A medium begins at the next free number s: a token in frame
    k, row i, column j has (s + time of k, s + i, s + j). What follows goes on at the highest number of all
    axes so far + 1, also where a video has more frames than rows and columns.
    How the rotary frequencies are divided among the axes is the decoder's business (`DecoderConfig.section`).
    """

    axes: int = 3

    def times(self, block: Block) -> Int64[np.ndarray, "N"]:
        """Time number of each temporal step of a medium, from 0. Here: its index.

        A family whose time is counted in seconds overrides this.
        """
        return np.arange(block.grid[0], dtype=np.int64)

    def place(self, length: int, blocks: Sequence[Block]) -> tuple[Int64[np.ndarray, "A T"], int]:
        """See `Positions.place`; the second value is (highest position + 1) - `length`."""
        positions = np.empty((3, length), dtype=np.int64)
        at = free = 0
        for block in blocks:
            positions[:, at : block.start] = np.arange(free, free + block.start - at)
            free += block.start - at
            t, h, w = block.grid
            at = block.start + t * h * w
            times, rows, columns = np.broadcast_arrays(
                self.times(block)[:, None, None], np.arange(h)[None, :, None], np.arange(w)[None, None, :]
            )
            own = free + np.stack([times, rows, columns]).reshape(3, t * h * w)
            positions[:, block.start : at] = own
            free = int(own.max()) + 1
        positions[:, at:] = np.arange(free, free + length - at)
        free += length - at
        return positions, free - length


@dataclass(frozen=True, kw_only=True)
class TimedMRope(MRope):
    """M-RoPE whose time axis counts time, not frames (Qwen2.5-VL paper, section 2.1.3).

    Two videos of one event get the same time numbers whatever their frame rate was: `tokens_per_second` of
    them pass in a second. Steps are even, `temporal` / fps seconds each, as published; images stay at 0.
    """

    tokens_per_second: int = 2
    temporal: int = 2

    def times(self, block: Block) -> Int64[np.ndarray, "N"]:
        """Time number of each temporal step, from 0; for an image its index."""
        if not block.fps:
            return super().times(block)
        # Published in float32, rounded down.
        step = np.float32(self.temporal / block.fps) * np.float32(self.tokens_per_second)
        return (np.arange(block.grid[0], dtype=np.float32) * step).astype(np.int64)
