"""Several callers at one engine: threads, streams in turns, streams that are left."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

import foveal
from foveal.core.errors import FovealError
from tests.helpers import engines
from tests.helpers.engines import alone, assert_empty


def test_threads_and_turns(vlm):
    questions = [f"What about number {i}?" for i in range(6)]
    expected = [alone(vlm, vlm.process(q), 12) for q in questions]
    found = {}

    def ask(number):
        found[number] = list(vlm.chat(questions[number], max_tokens=12).ids)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    streams = [vlm.stream(questions[i], max_tokens=12) for i in (4, 5)]
    open_ones = dict(enumerate(streams, 4))
    while open_ones:
        for number, stream in list(open_ones.items()):
            if next(stream, None) is None:
                found[number] = list(stream.answer.ids)
                del open_ones[number]
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert [found[i] for i in range(6)] == expected
    assert_empty(vlm._desk.engine)
    assert not vlm._desk._boxes


def test_a_stream_that_is_left_ends(vlm):
    stream = vlm.stream("Tell me a long story.", max_tokens=400, ignore_eos=True)
    next(stream)
    assert vlm._desk.engine.busy
    del stream
    gc.collect()
    assert_empty(vlm._desk.engine)


def test_a_model_is_gone_when_it_is_dropped(tmp_path):
    vlm = engines.model("qwen2_vl", tmp_path)
    vlm.chat("What?", max_tokens=2)
    network = weakref.ref(vlm.network)
    gc.disable()
    try:
        del vlm
        assert network() is None
    finally:
        gc.enable()


def test_an_error_reaches_its_caller(tmp_path):
    vlm = engines.model("qwen2_vl", tmp_path)
    batch = vlm.process(["What?", "Where?"])
    with torch.no_grad():
        vlm.network.language.norm.weight.fill_(torch.nan)
    with pytest.raises(FovealError, match="not finite"):
        vlm.generate(batch)
    with pytest.raises(FovealError, match="not finite"):
        vlm.chat("What?")
    assert_empty(vlm._desk.engine)


def test_split_undoes_join():
    rng = np.random.default_rng(0)

    def pack(length, media):
        grids = np.array([[1, 2, n] for n in rng.integers(1, 4, media)], np.int64).reshape(-1, 3)
        records = tuple(
            foveal.Medium(
                kind="image",
                sequence=0,
                view=foveal.ImageView(original=(4, 4), processed=(4, 4)),
                grid=(1, 2, 2),
                tokens=1,
            )
            for _ in range(media)
        )
        return foveal.Packed(
            tokens=rng.integers(0, 9, length),
            positions=rng.integers(0, 9, (3, length)),
            starts=np.array([0, length]),
            deltas=rng.integers(0, 9, 1),
            patches=rng.random((int(grids.prod(1).sum()), 5), dtype=np.float32),
            grids=grids,
            media=records,
            runs=tuple(foveal.core.packed.Run(start=i, length=1, medium=i) for i in range(media)),
            spans=(foveal.core.packed.Span(start=0, stop=length, role="user", learned=False),),
            extra={"media_left_out": rng.integers(0, 3, 1), **({"tiles": rng.random((media, 2))} if media else {})},
        )

    packs = [pack(4, 2), pack(3, 0), pack(6, 1), pack(5, 1)]
    for one, two in zip(packs, foveal.core.packed.split(foveal.join(packs)), strict=True):
        for name, value in vars(one).items():
            other = getattr(two, name)
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, other), name
            elif name == "extra":
                assert value.keys() == other.keys()
                assert all(np.array_equal(value[key], other[key]) for key in value)
            else:
                assert value == other, name
