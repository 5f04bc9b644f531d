"""A step in which every row of a batch says one more token, in shapes that depend on the size of the batch alone.

An accelerator can record such a step once and play it again: nothing in it waits for the host, no tensor is copied to
the device, no shape follows from a length, and every tensor that outlives it lies where it lay before.

Attention reads as many rows for each sequence as `reach` pages have. Where a sequence is shorter, its rows come from
the page of zeros and are masked, so nobody's memory is read for another, not even numbers that are not finite.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Float, Int
from foveal.language.cache import Cache
from foveal.language.decoder import Decoder
from foveal.language.pages import IDLE, Pages
from foveal.nn.moe import MoE


def has_fixed_shapes(language: Decoder) -> bool:
    """Whether a decoder's step is of that kind: its attention keeps keys and values, and it has no experts.

    Experts are called with the tokens that chose them, so the host has to know how many those are. Latent attention is
    only found beside experts.
    """
    if any(isinstance(module, MoE) for module in language.modules()):
        return False
    return all(getattr(layer.attention, "fixed_shapes", False) for layer in language.layers)


class FixedCache(Cache):
    """The cache of one step: sequences of `lengths` tokens in the pages of `table`, and one new token each."""

    def __init__(self, pages: Pages, table: Int[Tensor, "B P"], lengths: Int[Tensor, "B"]) -> None:
        super().__init__(0, depth=0)
        self.pages, size = pages, pages.page_tokens
        places = torch.arange(size, device=table.device)
        rows = (table[:, :, None] * size + places).flatten(1)
        seen = torch.arange(rows.shape[1], device=table.device) <= lengths[:, None]
        self._new = rows.gather(1, lengths[:, None])[:, 0]
        self._rows = (rows * seen).flatten()  # row 0 lies in the page of zeros
        self._seen = seen[:, None, None]

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B H K"],
        k: Float[Tensor, "B G K"],
        v: Float[Tensor, "B G L"],
        starts: Sequence[int],
    ) -> Float[Tensor, "B H L"]:
        """Adds the keys and values of the new tokens; each attends to its own sequence. See `Cache.attend`."""
        batch, heads, size = q.shape
        groups = k.shape[1]
        keys, values = (
            tensor.index_select(0, self._rows).view(batch, -1, groups, tensor.shape[-1]).transpose(1, 2)
            for tensor in self.pages.write(layer, self._new, k, v)
        )
        # Query heads that share a key head become rows: no key is copied per query head.
        rows = q.view(batch, groups, heads // groups, size)
        return F.scaled_dot_product_attention(rows, keys, values, attn_mask=self._seen).reshape(batch, heads, -1)

    def write(self, layer: int, sequence: int, *new: Tensor) -> tuple[Tensor, ...]:
        raise FovealError("attention of this kind has no steps of fixed shape; this is an error in the engine.")

    def advance(self, lengths: Sequence[int]) -> None:
        """Nothing: whoever plays the step counts its tokens."""


class FixedStep:
    """The step for up to `rows` sequences of at most `reach` pages, on tensors of its own that never move.

    `inputs` [rows, 2 + A + reach] hold for each row its new token, how many tokens it has, the new one's positions, and
    its pages. `scores` [at least rows, V] get the result. A second computation with the same inputs changes nothing.
    """

    def __init__(self, language: Decoder, pages: Pages, scores: Tensor, *, rows: int, reach: int, axes: int) -> None:
        self.language, self.pages, self.axes = language, pages, axes
        self.rows, self.reach = rows, reach
        self.scores = scores[:rows]
        self.inputs = torch.zeros(rows, 2 + axes + reach, dtype=torch.long, device=scores.device)

    def load(self, rows: Sequence[tuple[int, int, Sequence[int], Sequence[int]]]) -> None:
        """Takes token, length, positions and pages of every row; the rows behind them belong to nobody."""
        inputs = torch.zeros(self.inputs.shape, dtype=torch.long)
        values = inputs.numpy()
        values[len(rows) :, 2 + self.axes] = IDLE
        for number, (token, length, positions, held) in enumerate(rows):
            values[number, :2] = token, length
            values[number, 2 : 2 + self.axes] = positions
            own = held[: self.reach]  # behind them there may be pages of guesses that were wrong
            values[number, 2 + self.axes : 2 + self.axes + len(own)] = own
        self.inputs.copy_(inputs)

    def compute(self) -> None:
        """Computes the step from `inputs` to `scores`; this is what is recorded."""
        tokens, lengths = self.inputs[:, 0], self.inputs[:, 1]
        positions, table = self.inputs[:, 2 : 2 + self.axes].T, self.inputs[:, 2 + self.axes :]
        cache = FixedCache(self.pages, table, lengths)
        x = self.language.embed(tokens)
        hidden = self.language(x, positions, range(self.rows + 1), cache=cache)
        self.scores.copy_(self.language.logits(hidden))
