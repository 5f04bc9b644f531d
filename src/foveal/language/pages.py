"""Keys and values in memory that never moves: pages of a fixed number of tokens, for steps that are captured.

A `Store` grows, so its tensors move; what an accelerator has captured reads the same addresses for ever. Here every
layer has one tensor for all sequences, taken once, and a sequence has a list of pages of it:

    tensor of a layer   [ zeros | idle | page | page | page | ... ]   rows of G heads, `page_tokens` rows a page
                                            ▲             ▲
    a sequence            rows 0 to n - 1 ──┘   n ... ────┘

The page of zeros is never written to: whoever reads more rows than a sequence has reads it there. The idle page takes
what rows of a batch leave that belong to nobody.

What tokens have left is never written to again, so whole pages are shared, not copied: a page is free again when
nobody holds it.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Float
from foveal.language.cache import Piece, Store
from foveal.language.layers import Layers

ZEROS, IDLE, RESERVED = 0, 1, 2
"""The page of zeros, the idle page, and how many pages no sequence gets."""


class Page:
    """A page of every layer. It is free again when the last reference to it goes, as memory of tensors is."""

    def __init__(self, number: int, free: list[int]) -> None:
        self.number, self._free = number, free

    def __del__(self) -> None:
        self._free.append(self.number)


class Pages:
    """`total` pages of `page_tokens` tokens in every one of `depth` layers; taken when a layer is first written to."""

    def __init__(self, total: int, page_tokens: int, depth: int) -> None:
        self.total, self.page_tokens = total, page_tokens
        self._free = list(range(total + RESERVED - 1, RESERVED - 1, -1))
        self._layers: list[tuple[Tensor, ...]] = [()] * depth

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def depth(self) -> int:
        return len(self._layers)

    def count(self, tokens: int) -> int:
        """How many pages hold so many tokens."""
        return -(-tokens // self.page_tokens)

    def take(self) -> Page:
        """A page of one's own. What it held before is still in it."""
        if not self._free:
            raise FovealError(f"all {self.total} pages are in use; this is an error in the engine.")
        return Page(self._free.pop(), self._free)

    def tensors(self, layer: int) -> tuple[Float[Tensor, "R G _"], ...]:
        """The rows of a layer; none before it is first written to."""
        return self._layers[layer]

    def write(self, layer: int, rows: Tensor, *new: Float[Tensor, "T G _"]) -> tuple[Float[Tensor, "R G _"], ...]:
        """Writes into rows of a layer; returns all its rows."""
        if not self._layers[layer]:
            count = (self.total + RESERVED) * self.page_tokens
            self._layers[layer] = tuple(n.new_zeros(count, *n.shape[1:]) for n in new)
        for tensor, values in zip(self._layers[layer], new, strict=True):
            tensor.index_copy_(0, rows, values)
        return self._layers[layer]

    def forget(self) -> None:
        """Gives the memory of all layers back; for when nobody holds a page."""
        self._layers = [()] * self.depth

    @property
    def token_bytes(self) -> int:
        """Memory of one token in all layers that were written to."""
        return sum(t[0].numel() * t.element_size() for tensors in self._layers for t in tensors)


class PagedPiece(Layers):
    """What the `tokens` first tokens of some pages left in every layer; it holds the pages."""

    def __init__(self, pages: Pages, held: Sequence[Page], tokens: int) -> None:
        self.pages, self.held, self.tokens = pages, list(held), tokens

    def __len__(self) -> int:
        return self.pages.depth

    def layer(self, number: int) -> tuple[Tensor, ...]:
        """Each tensor of a layer, [G, n, K] as in every piece: without copying where it lies in one page."""
        size = self.pages.page_tokens
        starts = [page.number * size for page in self.held]
        found = []
        for tensor in self.pages.tensors(number):
            parts = [tensor[start : start + size] for start in starts]
            rows = parts[0] if len(parts) == 1 else torch.cat(parts)
            found.append(rows[: self.tokens].transpose(0, 1))
        return tuple(found)


class PagedStore(Store):
    """A `Store` in pages. It takes a page when a write needs one, and shares whole pages with others."""

    in_a_row: ClassVar[bool] = False

    def __init__(self, pages: Pages, *, capacity: int) -> None:
        super().__init__(0, capacity=capacity)
        self.pages = pages
        self._held: list[Page] = []
        self._rows = torch.empty(0, dtype=torch.long)

    @property
    def numbers(self) -> list[int]:
        """The pages in the order of their tokens."""
        return [page.number for page in self._held]

    def reach(self, tokens: int) -> None:
        """Takes pages for so many tokens in all."""
        while len(self._held) < self.pages.count(tokens):
            self._held.append(self.pages.take())

    def write(self, layer: int, *new: Float[Tensor, "T G _"]) -> tuple[Float[Tensor, "G S _"], ...]:
        """Adds what T new tokens leave; returns each for all tokens, heads first, gathered from the pages."""
        start, stop = self.length, self.length + len(new[0])
        rows = self._rows_of(stop, new[0].device)
        tensors = self.pages.write(layer, rows[start:], *new)
        return tuple(tensor.index_select(0, rows).transpose(0, 1) for tensor in tensors)

    def cut(self, starts: Sequence[int], size: int) -> list[Piece]:
        """Pieces of `size` tokens from each of `starts` on, which keep their pages. The store is empty then."""
        pieces: list[Piece] = [self.view(start, start + size) for start in starts]
        self._held, self.length = [], 0
        return pieces

    def append(self, pieces: Sequence[Piece]) -> None:
        """Adds `pieces`, in order: whole pages are shared, the rest is copied."""
        size = self.pages.page_tokens
        for piece in pieces:
            rest: Piece | None = piece
            if isinstance(piece, PagedPiece) and piece.pages is self.pages and self.length % size == 0:
                whole = piece.tokens // size
                self._held[self.length // size :] = piece.held[:whole]
                self._rows = self._rows[: self.length]
                self.length += whole * size
                left = piece.tokens - whole * size
                rest = PagedPiece(self.pages, piece.held[whole:], left) if left else None
            if rest is not None:
                self._copy(rest)

    def _copy(self, piece: Piece) -> None:
        stop = self.length + piece[0][0].shape[1]
        for layer, values in enumerate(piece):
            rows = self._rows_of(stop, values[0].device)[self.length :]
            # Clones, because a piece may lie in the tensor that is written to.
            self.pages.write(layer, rows, *(value.transpose(0, 1).clone() for value in values))
        self.length = stop

    def view(self, start: int, stop: int) -> PagedPiece:
        """What tokens `start` to `stop` left, without copying; `start` is the first token of a page."""
        size = self.pages.page_tokens
        if start % size:
            raise FovealError(f"token {start} begins no page of {size} tokens; this is an error in the engine.")
        return PagedPiece(self.pages, self._held[start // size : -(-stop // size)], stop - start)

    @property
    def bytes(self) -> int:
        """Memory of its pages; what is shared counts for each that shares it."""
        return len(self._held) * self.pages.page_tokens * self.pages.token_bytes

    def _rows_of(self, stop: int, device: torch.device) -> Tensor:
        """Where the first `stop` tokens lie, in the order of the sequence."""
        self.reach(stop)
        if len(self._rows) < stop or self._rows.device != device:
            size = self.pages.page_tokens
            first = torch.tensor(self.numbers)[:, None] * size
            self._rows = (first + torch.arange(size)).flatten().to(device)
        return self._rows[:stop]
