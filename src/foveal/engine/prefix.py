"""Keys under which blocks of keys and values are found again.

What a layer keeps of a token depends on everything up to that token: the ids, their positions, and what the model sees
in the places of visual tokens. The key of a block is a hash over the key of the block before it and all of that:

    key 0 = H(weights)      key n+1 = H(key n | ids, positions of block n | media in block n: content, first token)
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from foveal.core.packed import Packed, Run, extra_of
from foveal.core.shapes import Int64


def content_key(packed: Packed, medium: int, patches: slice, weights: bytes) -> bytes:
    """256 bits that say what the tower is given for a medium, and by which weights it sees.

    Patches hold the content at its processed size; with the grid, the medium's kind and the family's own arrays they
    are all that processing, in whatever mode and with whatever settings, hands to the tower.
    """
    found = hashlib.sha256(weights)
    record = packed.media[medium]
    found.update(f"{record.kind} {packed.grids[medium].tolist()} {record.tokens}".encode())
    found.update(np.ascontiguousarray(packed.patches[patches]).data)
    for name, rows in sorted(extra_of(packed, medium).items()):
        found.update(f"{name} {rows.dtype} {rows.shape}".encode())
        found.update(np.ascontiguousarray(rows).data)
    return found.digest()


def chain(
    before: bytes,
    tokens: Int64[np.ndarray, "T"],
    marks: Int64[np.ndarray, "A T"],
    block_tokens: int,
    *,
    start: int = 0,
    runs: Sequence[Run] = (),
    contents: Sequence[bytes] = (),
) -> list[bytes]:
    """The keys of all whole blocks of `tokens`, which begin at token `start` of their sequence.

    `before` is the key of the block before them, `marks` are what keys depend on beside the tokens (`VLM.marks`).
    `runs` are the places of visual tokens in the sequence, `contents` the keys of its media.
    """
    words = np.concatenate((tokens[None], marks))
    keys = []
    for first in range(0, len(tokens) - block_tokens + 1, block_tokens):
        last = first + block_tokens
        found = hashlib.sha256(before)
        found.update(np.ascontiguousarray(words[:, first:last]).data)
        for run in runs:
            if run.start < start + last and run.start + run.length > start + first:
                found.update(contents[run.medium])
                found.update(f"{run.start - start - first} {run.length}".encode())
        before = found.digest()
        keys.append(before)
    return keys
