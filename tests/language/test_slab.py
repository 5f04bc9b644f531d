"""Pieces in shared memory: nothing is lost or mixed up when they move, and memory follows what is held."""

import random

import torch

from foveal.language.cache import Store
from foveal.language.slab import PART_BYTES, Slabs

KIND = (
    (((2, 4, 3), torch.float32), ((1, 4, 5), torch.bfloat16)),
    (((2, 4, 3), torch.float32), ((1, 4, 5), torch.bfloat16)),
)
SLOT = 2 * (128 + 64)  # bytes: 96 and 40, each in whole cache lines
CPU = torch.device("cpu")


def fill(piece, value):
    for layer, tensors in enumerate(piece):
        for number, tensor in enumerate(tensors):
            tensor.fill_(value + 100 * layer + 10 * number)


def holds(piece, value):
    return all(
        bool((tensor == value + 100 * layer + 10 * number).all())
        for layer, tensors in enumerate(piece)
        for number, tensor in enumerate(tensors)
    )


def test_pieces_have_the_shapes_that_were_asked_for():
    (piece,) = Slabs(10).take(KIND, CPU, 1)
    assert len(piece) == 2
    assert [(t.shape, t.dtype) for tensors in piece for t in tensors] == [(s, d) for ts in KIND for s, d in ts]
    assert [t.shape for t in piece[1:][0]] == [t.shape for t in piece[-1]]


def test_pieces_come_and_go_and_memory_with_them():
    slabs, chance, held = Slabs(320), random.Random(5), {}
    part = 20 * SLOT  # a sixteenth of the pieces
    most = 0
    for number in range(3000):
        if len(held) > 320 or (held and chance.random() < (0.2 if number < 1500 else 0.6)):
            del held[chance.choice(list(held))]
        else:
            (held[number],) = slabs.take(KIND, CPU, 1)
            fill(held[number], number % 50)
        most = max(most, len(held))
        assert len(held) * SLOT <= slabs.bytes <= len(held) * SLOT + 3 * part
        if number % 250 == 0:
            assert all(holds(piece, name % 50) for name, piece in held.items())
    assert most > 300
    assert all(holds(piece, name % 50) for name, piece in held.items())
    held.clear()
    assert slabs.bytes == 0


def test_parts_are_no_larger_than_needed():
    slabs = Slabs(2)
    (one,) = slabs.take(KIND, CPU, 1)
    assert slabs.bytes == SLOT
    large = ((((2, 1024, 1024), torch.float32),),)
    (two,) = Slabs(1000).take(large, CPU, 1)
    assert two[0][0].shape == (2, 1024, 1024)
    many = Slabs(10**6)
    held = many.take(KIND, CPU, 1)
    assert len(held) == 1
    assert PART_BYTES - SLOT < many.bytes <= PART_BYTES
    del one
    assert slabs.bytes == 0


def test_a_store_leaves_its_pieces_in_the_slab():
    slabs = Slabs(8)
    store = Store(2, capacity=8, slabs=slabs)
    values = torch.arange(8.0)[:, None, None].expand(-1, 2, 3)
    for layer in range(2):
        store.write(layer, values + layer)
    store.length = 8
    first, last = store.cut([0, 5], 3)
    assert store.length == store.bytes == 0
    assert slabs.bytes == 2 * 2 * 128
    assert torch.equal(first[1][0], (values[:3] + 1).transpose(0, 1))
    assert torch.equal(last[0][0], values[5:8].transpose(0, 1))
    again = Store(2)
    again.append([last, first])
    assert again.view(0, 6)[0][0][0, :, 0].tolist() == [5, 6, 7, 0, 1, 2]


def test_pieces_of_an_engine_may_go_anywhere():
    """Made under inference mode, dropped and moved outside of it."""
    slabs = Slabs(32)
    with torch.inference_mode():
        held = slabs.take(KIND, CPU, 9)
        for number, piece in enumerate(held):
            fill(piece, number)
    last = held[-1]
    del held[1:], piece
    assert slabs.bytes == 2 * 2 * SLOT
    assert holds(held[0], 0) and holds(last, 8)
