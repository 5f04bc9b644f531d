"""Memory of keys and values, counted in blocks, and prefixes that can be used again.

Attention is fastest on keys that lie in a row, so a running sequence has one contiguous `Store`. What can be shared is
addressed by content: a `Block` is what `block_tokens` tokens left, with everything before them, under a key that says
all of that.

    running     [ block | block | block | tail ...  ]      a store; its blocks cost nothing beside it
                    ▲       ▲
    index       key ┘   key ┘  key ─▶ piece                a copy of its own, once no running store holds it

A block counts the stores that hold it. When the last of them goes, the block moves into a piece of its own; a new
sequence that begins alike copies blocks from wherever they are.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from foveal.core.errors import FovealError
from foveal.language.cache import Piece, Store
from foveal.language.slab import Slabs


@dataclass(eq=False)
class Block:
    """What the tokens from `start` on left. `holders` are the running stores that have it, in that same place."""

    key: bytes
    start: int
    holders: list[Store] = field(default_factory=list)
    piece: Piece | None = None


class BlockPool:
    """All memory for keys and values: `total` blocks of `block_tokens` tokens each.

    `working` blocks belong to running stores, `kept` ones are pieces. Pieces give way when stores need their room:
    first those that a running store holds too, then the others, the least recently used first. `slabs` is where
    pieces lie, for stores that are made for this pool.
    """

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total, self.block_tokens = total, block_tokens
        self.working = 0
        self.slabs = Slabs(total)
        self._blocks: dict[bytes, Block] = {}
        self._doubled: OrderedDict[bytes, Block] = OrderedDict()  # pieces that a store holds too
        self._idle: OrderedDict[bytes, Block] = OrderedDict()  # pieces that nobody holds

    @property
    def kept(self) -> int:
        """Pieces."""
        return len(self._doubled) + len(self._idle)

    @property
    def free(self) -> int:
        return self.total - self.working - self.kept

    def blocks(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.block_tokens)

    def reserve(self, count: int) -> bool:
        """Takes `count` blocks for a store, dropping pieces where needed; False, and no change, if there is no room."""
        if count > self.total - self.working:
            return False
        while self.free < count:
            self._drop()
        self.working += count
        return True

    def release(self, count: int) -> None:
        """Gives back what `reserve` took."""
        if count > self.working:
            raise FovealError(
                f"{count} blocks come back but {self.working} are in use; this is an error in the engine."
            )
        self.working -= count

    def match(self, keys: Iterable[bytes]) -> list[Block]:
        """The known blocks of the longest beginning of `keys`; they become the most recently used ones."""
        found = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(block)
        for block in reversed(found):  # the beginning last, because nothing behind it is found without it
            if block.piece is not None:
                (self._doubled if block.holders else self._idle).move_to_end(block.key)
        return found

    def load(self, store: Store, blocks: Sequence[Block]) -> None:
        """Copies blocks into a store, from the beginning on, which then holds them."""
        for block in blocks:
            store.append([self._values(block)])
            self._hold(block, store)

    def hold(self, store: Store, keys: Sequence[bytes], first: int) -> None:
        """Says that `store` has the blocks with these keys, beginning with block number `first`."""
        for number, key in enumerate(keys, first):
            block = self._blocks.get(key)
            if block is None:
                self._blocks[key] = block = Block(key=key, start=number * self.block_tokens)
            self._hold(block, store)

    def leave(self, store: Store, keys: Sequence[bytes]) -> None:
        """The store ends. Blocks that only it held become pieces while there is free room; call `release` before."""
        orphans: list[Block] = []
        for key in reversed(keys):  # the beginning last, because nothing behind it is found without it
            block = self._blocks[key]
            block.holders.remove(store)
            if block.holders:
                continue
            if block.piece is not None:
                self._idle[key] = self._doubled.pop(key)
            elif self.free > len(orphans):
                orphans.append(block)
            else:
                del self._blocks[key]
        pieces = store.cut([block.start for block in orphans], self.block_tokens)
        for block, piece in zip(orphans, pieces, strict=True):
            block.piece = piece
            self._idle[block.key] = block

    def clear(self) -> None:
        """Forgets all pieces."""
        while self.kept:
            self._drop()

    @property
    def kept_bytes(self) -> int:
        """Memory of all pieces, which are of one size."""
        block = next(iter(self._idle.values()), None) or next(iter(self._doubled.values()), None)
        if block is None or block.piece is None:
            return 0
        return self.kept * sum(t.numel() * t.element_size() for tensors in block.piece for t in tensors)

    def _hold(self, block: Block, store: Store) -> None:
        if not block.holders and block.piece is not None:
            self._doubled[block.key] = self._idle.pop(block.key)
        block.holders.append(store)

    def _values(self, block: Block) -> Piece:
        if block.piece is not None:
            return block.piece
        return block.holders[0].view(block.start, block.start + self.block_tokens)

    def _drop(self) -> None:
        if self._doubled:
            _, block = self._doubled.popitem(last=False)
        else:
            _, block = self._idle.popitem(last=False)
            del self._blocks[block.key]
        block.piece = None
