"""Recorded steps change no answer, and are recorded again when they have to be. The recorder plays without Python."""

import contextlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import foveal
from foveal.core.errors import ContextError, InputError
from foveal.engine import graphs
from foveal.engine.graphs import Graphs, Row, _bucket
from foveal.language.cache import Cache, Store
from foveal.language.pages import IDLE, PagedStore, Pages
from foveal.nn.lora import LoraPart, attach, merge
from tests.engine import test_engine as plain
from tests.engine.test_engine import ask, engine_of, text
from tests.helpers import engines
from tests.helpers.engines import alone, assert_empty, drive
from tests.helpers.tape import Tapes

slow = pytest.mark.slow
FIXED = (
    "qwen2_5_vl",
    *(pytest.param(family, marks=slow) for family in ("qwen2_vl", "qwen3_vl", "qwen_vl", "deepseek_vl")),
)


@pytest.fixture
def tapes(monkeypatch):
    """Steps can be recorded here."""
    made = Tapes()
    monkeypatch.setattr(graphs, "capture_on", lambda device: made)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    engines.write("qwen2_vl", folder)
    return folder


@pytest.fixture
def own(folder):
    """A model to be changed."""
    return foveal.load(folder, dtype="float32", device="cpu")


def assert_no_page_lost(engine):
    assert_empty(engine)
    pages = engine._graphs.pages
    assert pages.total - pages.free == engine.stats().blocks_cached


@pytest.mark.parametrize("family", FIXED)
def test_every_family_answers_as_alone(family, tmp_path, tapes):
    """As in `test_engine`: prompts are cut, answers give way and come back, requests come and go at every step."""
    vlm = engines.model(family, tmp_path / "model")
    rng = np.random.default_rng(1)
    shared = engines.pictures(rng, 1)[0]
    conversations = [
        ask(shared, text("What is in this picture? " * 4)),
        ask(text("Find the red bicycle.")),
        ask(shared, text("What is in this picture? " * 4), *engines.pictures(rng, 1)),
        ask(text("Describe. " * 20)),
        ask(text("And now?")),
    ]
    requests = {str(i): vlm.process(c) for i, c in enumerate(conversations)}
    expected = {name: alone(vlm, packed, 12) for name, packed in requests.items()}
    longest = max(len(p.tokens) for p in requests.values())
    engine = engine_of(
        vlm, cache_tokens=longest + 60, block_tokens=4, step_tokens=max(24, longest // 3), max_requests=4
    )
    arrivals = [(0, "0"), (0, "1"), (1, "2"), (2, "3"), (3, "4")]
    assert drive(engine, requests, arrivals, tokens=12, preempt=(2, 7, 9)) == expected
    assert engine.stats().preemptions >= 3
    assert_no_page_lost(engine)
    backwards = [(2 * i, str(4 - i)) for i in range(5)]
    del expected["3"]
    assert drive(engine, requests, backwards, tokens=12, aborts={7: ["3"]}) == expected
    assert engine.stats().prefix_tokens > 0
    assert_no_page_lost(engine)
    assert tapes.plays == engine._graphs.played > 20
    assert tapes.captures == len(engine._graphs._steps) < 8


@pytest.mark.parametrize(
    "test",
    [
        pytest.param(plain.test_short_memory, marks=slow),
        pytest.param(plain.test_guesses_change_nothing, marks=slow),
        plain.test_n_answers_share_their_prompt,
        plain.test_turns_go_on_from_what_is_kept,
        plain.test_logprobs_are_the_models_own,
        plain.test_constraints_and_their_errors,
        plain.test_an_abort_is_over_within_a_step,
    ],
)
def test_what_engines_promise(test, vlm, tapes):
    test(vlm)
    assert tapes.plays > 0 or test is plain.test_logprobs_are_the_models_own


@pytest.mark.parametrize(
    "test", [plain.test_other_weights_other_memory, plain.test_scores_that_are_not_finite_end_one_request_only]
)
def test_what_engines_promise_of_other_weights(test, tmp_path, tapes):
    test(tmp_path)
    assert tapes.plays > 0


def test_memory_of_a_failed_request_spoils_nobody(own, tapes):
    """Scores that are no numbers leave keys and values that are none in pages that others get."""
    vlm = own
    bad, good = vlm.process("bad 猫 " * 9), vlm.process("What is it?")
    expected = alone(vlm, good, 12)
    tokens = set(bad.tokens.tolist()) - set(good.tokens.tolist()) - set(expected)
    with torch.no_grad():
        vlm.network.language.embed.weight[min(tokens)] = torch.nan
    engine = engine_of(vlm, cache_tokens=len(bad.tokens) + 20, block_tokens=4, prefix_cache=False)
    for _ in range(2):
        engine.add(bad, foveal.Sampling(max_tokens=5), id="bad")
        assert engine.step()[-1].finish_reason == "error"
    spoiled = engine._graphs.pages.tensors(1)[0].isnan().any()
    assert spoiled
    assert drive(engine, {"good": good}, [(0, "good")], tokens=12) == {"good": expected}


def test_rows_are_recorded_once_a_bucket(vlm, tapes, caplog):
    """Powers of two: 3 to 4 answers are one recording, whoever they are; what is longer has one of its own."""
    caplog.set_level(logging.INFO, "foveal.engine.graphs")
    engine = engine_of(vlm, block_tokens=8, max_requests=6, prefix_cache=False)
    requests = {str(i): vlm.process(f"Say {i}") for i in range(6)}
    for count, buckets in ((3, {(4, 32)}), (4, {(4, 32)}), (1, {(4, 32), (1, 32)}), (6, {(4, 32), (1, 32), (8, 32)})):
        names = list(requests)[:count]
        drive(engine, requests, [(0, n) for n in names], tokens=6, ignore_eos=True)
        assert set(engine._graphs._steps) == buckets
        assert tapes.captures == len(buckets)
    assert tapes.plays == 4 * 5
    assert "recorded a step of 8 rows with 256 tokens each" in caplog.text
    long = vlm.process("word " * 75)
    assert 240 < len(long.tokens) < 256 < len(long.tokens) + 18
    drive(engine, {"long": long}, [(0, "long")], tokens=20, ignore_eos=True)
    assert set(engine._graphs._steps) == {*buckets, (1, 64)}
    assert [_bucket(n, 1) for n in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
    assert [_bucket(n, 6) for n in (1, 6, 7, 12, 13)] == [6, 6, 12, 12, 24]


def test_long_rows_are_played_apart(vlm, tapes, monkeypatch):
    """What a layer gathers is bounded: few long rows at a time, and the short ones together."""
    monkeypatch.setattr(graphs, "LEAST_TOKENS", 8)
    token = vlm.network.language.config.cache_values * 4 // vlm.network.language.config.depth
    requests = {str(i): vlm.process("word " * length) for i, length in enumerate((3, 30, 4, 29, 5, 6))}
    expected = {name: alone(vlm, packed, 4) for name, packed in requests.items()}
    monkeypatch.setattr(graphs, "GATHER_BYTES", 300 * token)
    engine = engine_of(vlm, block_tokens=8)
    assert drive(engine, requests, [(0, name) for name in requests], tokens=4) == expected
    assert {(2, 16), (4, 8)} <= set(engine._graphs._steps)
    assert all(rows * reach * 8 <= 300 for rows, reach in engine._graphs._steps)
    monkeypatch.setattr(graphs, "GATHER_BYTES", 1)
    engine = engine_of(vlm, block_tokens=8)
    assert drive(engine, requests, [(0, name) for name in requests], tokens=4) == expected
    assert {rows for rows, _ in engine._graphs._steps} == {1}


def adapted(vlm):
    torch.manual_seed(5)
    layer = vlm.network.language.layers[0].mlp.down
    rank, (rows, columns) = 2, layer.weight.shape
    part = LoraPart(torch.randn(rank, columns), torch.randn(rows, rank), alpha=4.0)
    attach(vlm.network, {"language.layers.0.mlp.down": [part.requires_grad_(False)]})


def moved(vlm):
    weight = vlm.network.language.layers[1].norm1.weight
    weight.data = -weight.data.clone()


def doubled(vlm):
    vlm.network.double()


def written(vlm):
    with torch.no_grad():
        vlm.network.language.layers[1].norm1.weight.mul_(-1.0)


@pytest.mark.parametrize("change", [adapted, moved, doubled, written])
def test_a_network_of_another_form_is_recorded_again(change, own, tapes):
    vlm = own
    packed = vlm.process("What do you see here, in short? And what else is there?")
    engine = engine_of(vlm, block_tokens=4)
    requests = {"a": packed}
    before = drive(engine, requests, [(0, "a")], tokens=6, ignore_eos=True)
    assert drive(engine, requests, [(0, "a")], tokens=6, ignore_eos=True) == before
    assert tapes.captures == 1
    change(vlm)
    after = drive(engine, requests, [(0, "a")], tokens=6, ignore_eos=True)
    assert after["a"][:5] == alone(vlm, packed, 5)
    assert tapes.captures == 2
    if change is adapted:
        assert after != before
        merge(vlm.network)
        assert drive(engine, requests, [(0, "a")], tokens=6, ignore_eos=True) == after
        assert tapes.captures == 3
    if change is doubled:
        assert engine._graphs.pages.tensors(0)[0].dtype == torch.float64
    assert_no_page_lost(engine)


def test_weights_that_move_under_a_running_answer_are_noticed(own, tapes):
    """A recording would read what has been freed."""
    vlm = own
    packed = vlm.process("What is it?")
    expected = alone(vlm, packed, 10)
    engine = engine_of(vlm)
    engine.add(packed, foveal.Sampling(max_tokens=10))
    said = [engine.step()[0].token for _ in range(4)]
    old = [p.data for p in vlm.network.parameters()]
    for p in vlm.network.parameters():
        p.data = p.data.clone()
    for tensor in old:
        tensor.fill_(torch.nan)
    while engine.busy:
        said += [event.token for event in engine.step()]
    assert said == expected
    assert tapes.captures == 2


def test_what_cannot_be_recorded_is_computed(vlm, monkeypatch, caplog):
    fails = Tapes(fails=True)
    monkeypatch.setattr(graphs, "capture_on", lambda device: fails)
    requests = {str(i): vlm.process(f"Tell me about number {i}, please.") for i in range(3)}
    expected = {name: alone(vlm, packed, 8) for name, packed in requests.items()}
    engine = engine_of(vlm)
    assert drive(engine, requests, [(i, str(i)) for i in range(3)], tokens=8) == expected
    assert fails.captures == 1
    assert engine._graphs.played > 0
    assert caplog.text.count("cannot be recorded") == 1


def test_a_network_that_was_moved_is_computed(vlm, tapes):
    """What records knows one device: elsewhere its recordings would be empty."""
    packed = vlm.process("What is it?")
    engine = engine_of(vlm)
    engine._graphs._device = torch.device("cuda")
    assert drive(engine, {"a": packed}, [(0, "a")], tokens=4) == {"a": alone(vlm, packed, 4)}
    assert engine._graphs.played > 0
    assert tapes.captures == 0


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "deepseek_vl2"])
def test_other_families_go_the_ordinary_way(family, tmp_path, tapes):
    vlm = engines.model(family, tmp_path)
    engine = engine_of(vlm)
    assert engine._graphs is None
    packed = vlm.process("What is it?")
    assert drive(engine, {"a": packed}, [(0, "a")], tokens=4) == {"a": alone(vlm, packed, 4)}
    assert tapes.captures == 0
    with pytest.raises(InputError, match="graphs is True, but this family's steps have no fixed shapes"):
        engine_of(vlm, graphs=True)


def test_other_devices_go_the_ordinary_way(vlm):
    for choice in (None, False):
        engine = engine_of(vlm, graphs=choice)
        engine.add(vlm.process("Hi"), foveal.Sampling(max_tokens=4))
        engine.step()
        assert engine._graphs is None
        assert type(engine._scheduler.running[0].store) is Store
    with pytest.raises(InputError, match="graphs is True, but cpu records none; leave it None"):
        engine_of(vlm, graphs=True)
    assert graphs.capture_on(torch.device("mps")) is None


def test_it_can_be_switched_off(vlm, tapes):
    assert engine_of(vlm, graphs=False)._graphs is None
    assert engine_of(vlm, graphs=True)._graphs is not None


def test_memory_that_is_taken_at_once_has_to_be_there(vlm, tapes, monkeypatch):
    """By default half of what is free, where a whole context is more; what was asked for is taken as it is."""
    block = 32 * plain.token_bytes(vlm)
    monkeypatch.setattr(graphs, "free_bytes", lambda device: 41 * block)
    engine = engine_of(vlm)
    assert engine._pool.total == engine._graphs.pages.total == 20
    with pytest.raises(ContextError, match=r"the engine's cache holds 640; .*raise cache_bytes"):
        engine.add(vlm.process("word " * 250), foveal.Sampling(max_tokens=1))
    assert engine_of(vlm, cache_tokens=3200)._graphs.pages.total == 100
    monkeypatch.setattr(graphs, "free_bytes", lambda device: 2**40)
    assert engine_of(vlm)._graphs.pages.total == engine_of(vlm, graphs=False)._pool.total
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert [graphs.free_bytes(torch.device(name)) for name in ("cuda", "cpu", "mps")] == [7, None, None]


def test_idle_memory_is_never_given_away(vlm, tapes):
    """A batch of 3 in a bucket of 4: the row that belongs to nobody writes to the idle page alone."""
    pages = Pages(20, 4, vlm.network.language.config.depth)
    player = Graphs(vlm.network, pages, most_rows=4, capture=tapes)
    assert not player.refresh(idle=True)
    stores = [PagedStore(pages, capacity=8) for _ in range(3)]
    language = vlm.network.language
    with torch.inference_mode():
        for store in stores:
            places = torch.arange(5).expand(3, -1)
            language(language.embed(torch.arange(5)), places, [0, 5], cache=Cache.of([store]))
        before = [[t.clone() for t in pages.tensors(layer)] for layer in range(pages.depth)]
        player.run([Row(token=9, positions=[5] * 3, store=store) for store in stores])
    assert [store.length for store in stores] == [6, 6, 6]
    own = {store.numbers[1] * 4 + 1 for store in stores}
    for layer in range(pages.depth):
        for old, tensor in zip(before[layer], pages.tensors(layer), strict=True):
            assert set((old != tensor).flatten(1).any(1).nonzero()[:, 0].tolist()) == own | {IDLE * 4}


def test_the_shell_around_cuda(monkeypatch):
    """Warmed up on a stream beside the current one, recorded once into the shared pool, played by the graph."""
    said = []

    class Stream:
        def __init__(self, name="beside"):
            self.name = name

        def wait_stream(self, other):
            said.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def recording(graph, *, pool, capture_error_mode):
        said.append(f"record into {pool}, {capture_error_mode}")
        yield
        said.append("recorded")

    @contextlib.contextmanager
    def on(stream):
        said.append(f"on {stream.name}")
        yield

    pools = iter(["pool", "another"])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: said.append("play")))
    capture = graphs.capture_on(torch.device("cuda"))
    play = capture(lambda: said.append("compute"))
    assert said == [
        "beside waits for current", "on beside", "compute", "current waits for beside",
        "record into pool, thread_local", "compute", "recorded",
    ]  # fmt: skip
    play()
    assert said[-1] == "play"
    capture.forget()
    capture(lambda: None)
    assert "record into another, thread_local" in said
