"""Keys under which blocks of keys and values are found again.

What a layer keeps of a token depends on everything up to that token: the ids, their positions, and what the model sees
in the places of visual tokens. The key of a block is a hash over the key of the block before it and all of that:

    before the first block:   H(weights)
    of a block:               H(key before | ids and positions of its tokens | content and place of the media in it)
"""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
from torch import nn

from foveal.core.errors import InputError
from foveal.core.packed import Packed, Run, extra_of
from foveal.core.shapes import Int64


def weights_key(network: nn.Module) -> bytes:
    """256 bits that change whenever a weight or a layer is replaced or a weight is written to, an adapter's too."""
    layers = [id(module) for module in network.modules()]  # some hold their weights in forms of their own
    found = hashlib.sha256(f"{network.training} {layers}".encode())
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        version = 0 if tensor.is_inference() else tensor._version
        found.update(f"{tensor.data_ptr()} {version} {tensor.dtype} ".encode())
    return found.digest()


def rows_of_media(packed: Packed) -> list[slice]:
    """Which patches belong to each medium; raises `InputError` for a pack that does not fit together."""
    counts = packed.grids.prod(axis=1).tolist()
    bounds = list(itertools.accumulate(counts, initial=0))
    lengths = [0] * len(packed.media)
    for run in packed.runs:
        lengths[run.medium] += run.length
    if bounds[-1] != len(packed.patches) or lengths != [medium.tokens for medium in packed.media]:
        raise InputError(
            f"the prompt has {sum(lengths)} places for visual tokens but the media give "
            f"{sum(medium.tokens for medium in packed.media)}; process prompt and media together."
        )
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


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
