"""The engine: every answer is the one that the request gets alone, whatever runs beside it; and no block is lost."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import foveal
from foveal.core.errors import ContextError, EngineFull, InputError
from foveal.engine.engine import Engine
from foveal.engine.options import EngineOptions
from tests.helpers import engines, layouts
from tests.helpers.engines import alone, assert_empty, drive


def token_bytes(vlm):
    return vlm.network.language.config.cache_values * 4


def engine_of(vlm, *, cache_tokens=None, **options):
    bound = None if cache_tokens is None else cache_tokens * token_bytes(vlm)
    return Engine(vlm, EngineOptions(cache_bytes=bound, **options))


def ask(*parts):
    return [{"role": "user", "content": list(parts)}]


def text(words):
    return {"type": "text", "text": words}


@pytest.mark.parametrize("family", engines.FAMILIES)
def test_every_family_answers_as_alone(family, tmp_path):
    """Short memory, short steps, hits and an abort, so that prompts are cut, answers give way and come back."""
    vlm = engines.model(family, tmp_path / "model")
    rng = np.random.default_rng(1)
    shared = engines.pictures(rng, 1)[0]
    conversations = [
        ask(shared, text("What is in this picture? " * 4)),
        ask(text("Find the red bicycle.")),
        ask(shared, text("What is in this picture? " * 4), *engines.pictures(rng, 1)),
        ask(*engines.pictures(rng, 2), text("There are three cats.")),
        ask(text("Describe. " * 20)),
    ]
    requests = {str(i): vlm.process(c) for i, c in enumerate(conversations)}
    expected = {name: alone(vlm, packed, 10) for name, packed in requests.items()}
    longest = max(len(p.tokens) for p in requests.values())
    engine = engine_of(
        vlm, cache_tokens=longest + 60, block_tokens=4, step_tokens=max(24, longest // 3), max_requests=4
    )
    arrivals = [(0, "0"), (0, "1"), (1, "2"), (2, "3"), (3, "4")]
    assert drive(engine, requests, arrivals, tokens=10, preempt=(2, 7, 9)) == expected
    assert engine.stats().preemptions >= 3
    backwards = [(i, str(4 - i)) for i in range(5)]
    del expected["3"]
    assert drive(engine, requests, backwards, tokens=10, aborts={4: ["3"]}) == expected
    assert engine.stats().prefix_tokens > 0
    assert engine.stats().vision_hits > 0


def test_short_memory(vlm):
    """Answers that outgrow the cache give way to older ones and come back."""
    requests = {str(i): vlm.process(f"Tell me about number {i}, please.") for i in range(5)}
    expected = {name: alone(vlm, packed, 40) for name, packed in requests.items()}
    longest = max(len(p.tokens) for p in requests.values())
    engine = engine_of(vlm, cache_tokens=2 * longest + 70, block_tokens=4, max_requests=8)
    assert drive(engine, requests, [(0, name) for name in requests], tokens=40) == expected
    assert engine.stats().preemptions > 0


@pytest.mark.slow
def test_64_mixed_requests(vlm):
    """Text and one to four images, 16 to 2,000 tokens, in three orders, with hits, cuts, aborts, guesses.

    And some of them have to give way."""
    rng = np.random.default_rng(64)
    album = engines.pictures(rng, 12, side=260)
    requests = {}
    for number in range(64):
        images = [album[i] for i in rng.integers(0, len(album), rng.integers(0, 5))]
        words = " ".join(rng.choice(layouts.WORDS, max(4, int(5.4 * 200 ** rng.random()))))
        packed = (
            vlm.process(ask(*images, text(words)), max_pixels=200 * 200) if number % 4 else vlm.process(prompt=words)
        )
        requests[str(number)] = packed
    lengths = [len(p.tokens) for p in requests.values()]
    assert min(lengths) <= 16
    assert 1600 <= max(lengths) <= 2400
    expected = {name: alone(vlm, packed, 12) for name, packed in requests.items()}
    for order in range(3):
        names = rng.permutation(list(requests))
        arrivals = [(int(rng.integers(0, 60)), str(name)) for name in names]
        aborts = {step + int(rng.integers(0, 12)): [name] for step, name in arrivals[:5]}
        engine = engine_of(
            vlm,
            cache_tokens=int(2.2 * max(lengths)) * (1 + order),
            block_tokens=16,
            step_tokens=(96, 512, 2048)[order],
            max_requests=(8, 16, 64)[order],
            vision_tokens=600,
            speculate=(0, 4, 0)[order],
        )
        said = drive(engine, requests, arrivals, tokens=12, aborts=aborts, preempt=(5, 20, 33, 47))
        assert said == {name: expected[name] for name in said}
        assert len(said) >= 59
        stats = engine.stats()
        assert stats.vision_hits > 20
        assert stats.prefix_tokens > 500
        assert stats.preemptions >= 3


def test_guesses_change_nothing(vlm):
    rng = np.random.default_rng(8)
    repeated = "one two three four five six " * 6
    requests = {str(i): vlm.process(ask(*engines.pictures(rng, i), text(repeated))) for i in range(3)}
    expected = {name: alone(vlm, packed, 30) for name, packed in requests.items()}
    engine = engine_of(vlm, speculate=5)
    plain = engine_of(vlm)
    assert drive(engine, requests, [(0, "0"), (0, "1"), (3, "2")], tokens=30) == expected
    assert drive(plain, requests, [(0, "0"), (0, "1"), (3, "2")], tokens=30) == expected
    assert engine.stats().guessed > engine.stats().guessed_right > 0
    options = {"temperature": 0.3, "seed": 5, "repetition_penalty": 1.05, "frequency_penalty": 0.1}
    guessed = drive(engine, requests, [(0, n) for n in requests], tokens=16, **options)
    assert guessed == drive(plain, requests, [(0, n) for n in requests], tokens=16, **options)


def test_n_answers_share_their_prompt(vlm):
    packed = vlm.process(ask(*engines.pictures(np.random.default_rng(1), 1), text("Tell me a story.")))
    sampling = foveal.Sampling(max_tokens=9, temperature=1.0, seed=3, ignore_eos=True)

    def answers(engine, sampling, n):
        engine.add(packed, sampling, id="a", n=n)
        found = [[] for _ in range(n)]
        while engine.busy:
            for event in engine.step():
                found[event.index].append(event.token)
        assert_empty(engine)
        return found

    engine = engine_of(vlm, prefix_cache=False)
    together = answers(engine, sampling, 4)
    assert engine.stats().prompt_tokens == len(packed.tokens)
    assert len({tuple(ids) for ids in together}) == 4
    for index, ids in enumerate(together):
        assert [ids] == answers(engine, replace(sampling, seed=3 + index), 1)
    # Too little memory for all at once: the others wait, and say the same.
    small = engine_of(vlm, cache_tokens=len(packed.tokens) + 40, block_tokens=8)
    assert answers(small, sampling, 4) == together


def test_a_picture_is_seen_once(vlm, monkeypatch):
    seen = []
    real = vlm.network.see
    monkeypatch.setattr(vlm.network, "see", lambda batch: (seen.append(len(batch.grids)), real(batch))[1])
    rng = np.random.default_rng(2)
    first, second = engines.pictures(rng, 2)
    requests = {
        "a": vlm.process(ask(first, text("What?"))),
        "b": vlm.process(ask(text("Compare."), first, second)),
        "c": vlm.process(ask(second)),
    }
    engine = engine_of(vlm)
    drive(engine, requests, [(0, "a"), (0, "b"), (0, "c")], tokens=2)
    assert seen == [2]  # both pictures of all three requests together
    drive(engine, requests, [(0, "c"), (0, "b")], tokens=2)
    assert seen == [2]
    small = engine_of(vlm, vision_tokens=1, vision_cache_bytes=0)
    drive(small, requests, [(0, "b")], tokens=2)
    assert seen == [2, 1, 1]
    assert small.stats().vision_bytes == 0


def test_turns_go_on_from_what_is_kept(vlm):
    engine = engine_of(vlm, block_tokens=8)
    messages = ask(*engines.pictures(np.random.default_rng(4), 1), text("Describe it in many words, please."))
    first = vlm.process(messages)
    answer = drive(engine, {"a": first}, [(0, "a")], tokens=30, ignore_eos=True)["a"]
    longer = np.concatenate((first.tokens, answer[:-1], [5, 6, 7]))
    extra = len(longer) - len(first.tokens)
    places = np.tile(len(first.tokens) + np.arange(extra) + first.deltas[0], (3, 1))
    second = replace(
        first, tokens=longer, positions=np.concatenate((first.positions, places), 1), starts=np.array([0, len(longer)])
    )
    engine.add(second, foveal.Sampling(max_tokens=2), id="b")
    (event,) = engine.step()
    assert event.cached_tokens == (len(longer) - 3) // 8 * 8
    engine.abort("b")
    assert_empty(engine)


def test_other_weights_other_memory(tmp_path):
    vlm = engines.model("qwen2_vl", tmp_path)
    packed = vlm.process(ask(*engines.pictures(np.random.default_rng(3), 1), text("What do you see here, in short?")))
    before = vlm.generate(packed, max_tokens=6)[0]
    with torch.no_grad():
        for name, parameter in vlm.network.named_parameters():
            if "norm" in name:
                parameter.mul_(-1.0)
    after = vlm.generate(packed, max_tokens=6)[0]
    assert after == alone(vlm, packed, 6)
    assert after != before


def test_dynamic_bases_do_not_share(tmp_path):
    """Qwen-VL turns the keys of long prompts by another base: a prefix serves only prompts with the same one."""
    vlm = engines.model("qwen_vl", tmp_path)
    trained = vlm.config.language.trained
    beginning = np.array(vlm.processor.tokenizer.encode_text("The quick brown fox jumps over it. " * trained))
    room = vlm.config.language.context

    def prompt(length):
        text = vlm.process("x")
        positions = np.stack((np.arange(length), np.full(length, length)))
        return replace(text, tokens=beginning[:length], positions=positions, starts=np.array([0, length]), spans=())

    lengths = {"short": trained - 2, "long": trained + 6, "longer": trained + 9}
    assert max(lengths.values()) + 4 < room
    requests = {name: prompt(length) for name, length in lengths.items()}
    engine = engine_of(vlm, block_tokens=4)
    cached = {}
    for name, packed in requests.items():
        before = engine.stats().prefix_tokens
        assert drive(engine, {name: packed}, [(0, name)], tokens=3)[name] == alone(vlm, packed, 3)
        cached[name] = engine.stats().prefix_tokens - before
    assert cached["short"] == cached["long"] == 0
    assert cached["longer"] == (trained + 6) // 4 * 4


def test_logprobs_are_the_models_own(vlm):
    packed = vlm.process("What is in this picture?")
    scores = vlm.forward(packed).logits[-1].detach()
    known = scores.log_softmax(-1)
    engine = engine_of(vlm)
    sampling = foveal.Sampling(max_tokens=1, logprobs=3, temperature=0.7, top_k=2, seed=1)
    engine.add(packed, sampling)
    (event,) = engine.step()
    assert event.logprob == pytest.approx(float(known[event.token]), abs=1e-5)
    values, ids = known.topk(3)
    assert [id for id, _ in event.top] == ids.tolist()
    assert [value for _, value in event.top] == pytest.approx(values.tolist(), abs=1e-5)
    engine.add(packed, replace(sampling, logprobs=0, temperature=0.0))
    (event,) = engine.step()
    assert event.top == ()
    assert event.logprob == pytest.approx(float(known[event.token]), abs=1e-5)


class Only:
    """A constraint: these tokens, one after the other."""

    def __init__(self, ids, fails=False):
        self.ids, self.fails = list(ids), fails

    @property
    def done(self):
        return not self.ids

    def mask(self):
        if self.fails:
            raise RuntimeError("no grammar")
        allowed = np.zeros(max(self.ids[:1], default=0) + 1, dtype=bool)
        allowed[self.ids[:1]] = True
        return allowed

    def accept(self, token):
        assert token == self.ids.pop(0)


def test_constraints_and_their_errors(vlm):
    packed = vlm.process("Count.")
    engine = engine_of(vlm)
    greedy = foveal.Sampling(max_tokens=8)
    engine.add(packed, greedy, id="free")
    engine.add(packed, greedy, id="held", constraint=Only([9, 4, 7]))
    engine.add(packed, greedy, id="broken", constraint=Only([9], fails=True))
    engine.add(packed, greedy, id="two", n=2, constraint=[Only([3]), Only([2, 1])])
    said, ends = {}, {}
    while engine.busy:
        for event in engine.step():
            said.setdefault((event.id, event.index), []).append(event.token)
            if event.finish_reason:
                ends[event.id, event.index] = event.finish_reason, event.error
    assert said["free", 0] == alone(vlm, packed, 8)
    assert said["held", 0] == [9, 4, 7]
    assert ends["held", 0] == ("stop", "")
    assert ends["broken", 0] == ("error", "no grammar")
    assert said["two", 0], said["two", 1] == ([3], [2, 1])
    assert_empty(engine)


def test_scores_that_are_not_finite_end_one_request_only(tmp_path):
    vlm = engines.model("qwen2_vl", tmp_path)
    bad, good = vlm.process("bad 猫"), vlm.process("What is it?")
    expected = alone(vlm, good, 5)
    tokens = set(bad.tokens.tolist()) - set(good.tokens.tolist()) - set(expected)
    with torch.no_grad():
        vlm.network.language.embed.weight[min(tokens)] = torch.nan
    engine = engine_of(vlm)
    engine.add(bad, foveal.Sampling(max_tokens=5), id="bad")
    engine.add(good, foveal.Sampling(max_tokens=5), id="good")
    events = []
    while engine.busy:
        events += engine.step()
    assert [e.token for e in events if e.id == "good"] == expected
    (error,) = [e for e in events if e.id == "bad"]
    assert error.finish_reason == "error"
    assert "not finite" in error.error


def test_a_picture_that_fails_ends_its_own_requests_only(vlm, monkeypatch):
    rng = np.random.default_rng(6)
    first, second = (vlm.process(ask(p, text("What?"))) for p in engines.pictures(rng, 2))
    expected = alone(vlm, first, 4)
    real = vlm.network.see

    def see(batch):
        if any(np.array_equal(batch.patches[i : i + 1], second.patches[:1]) for i in range(len(batch.patches))):
            raise RuntimeError("out of memory")
        return real(batch)

    monkeypatch.setattr(vlm.network, "see", see)
    engine = engine_of(vlm)
    engine.add(first, foveal.Sampling(max_tokens=4), id="first")
    engine.add(second, foveal.Sampling(max_tokens=4), id="second", n=2)
    events = []
    while engine.busy:
        events += engine.step()
    assert [e.token for e in events if e.id == "first"] == expected
    assert [(e.index, e.finish_reason) for e in events if e.id == "second"] == [(0, "error"), (1, "error")]
    assert_empty(engine)


def test_what_is_refused(vlm):
    engine = engine_of(vlm, cache_tokens=64, max_requests=2, max_waiting=1)
    short = vlm.process("Hi")
    greedy = foveal.Sampling(max_tokens=4)
    with pytest.raises(ContextError, match=r"the engine's cache holds 64; .*raise cache_bytes"):
        engine.add(vlm.process("word " * 80), greedy)
    with pytest.raises(InputError, match="one sequence; this pack has 2"):
        engine.add(foveal.join([short, short]), greedy)
    with pytest.raises(InputError, match="n is 3; expected 1 to 2"):
        engine.add(short, greedy, n=3)
    with pytest.raises(InputError, match="1 constraints for 2 answers"):
        engine.add(short, greedy, n=2, constraint=[Only([1])])
    for name in "abc":
        engine.add(short, greedy, id=name)
    with pytest.raises(EngineFull, match="3 requests are waiting"):
        engine.add(short, greedy, id="d")
    with pytest.raises(InputError, match="request 'a' is already here"):
        engine.add(short, greedy, id="a")
    for name in ("a", "b", "c", "unknown"):
        engine.abort(name)
    assert not engine.busy
    assert engine.step() == []
    engine.add(short, greedy, id="a")
    with pytest.raises(InputError, match="step_tokens is 0; expected a whole number of at least 1"):
        EngineOptions(step_tokens=0)
    with pytest.raises(InputError, match="one block of 32 tokens takes"):
        Engine(vlm, EngineOptions(cache_bytes=10))


def test_an_abort_is_over_within_a_step(vlm):
    engine = engine_of(vlm, block_tokens=8)
    sampling = foveal.Sampling(max_tokens=50, ignore_eos=True)
    for name in ("a", "b"):
        engine.add(vlm.process(f"Tell me about {name}."), sampling, id=name, n=2)
    engine.step()
    engine.step()
    engine.abort("a")
    assert engine.stats().running == 2
    assert {event.id for event in engine.step()} == {"b"}
    engine.abort("b")
    assert_empty(engine)


def test_a_step_that_fails_ends_those_in_it(vlm, monkeypatch):
    engine = engine_of(vlm, max_requests=1)
    packed = vlm.process("What is it?")
    for name in ("a", "b"):
        engine.add(packed, foveal.Sampling(max_tokens=3), id=name)
    engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(vlm.network.language, "logits", lambda _: 1 / 0)
        (event,) = engine.step()
    assert (event.id, event.finish_reason) == ("a", "error")
    said = []
    while engine.busy:
        said += engine.step()
    assert [e.token for e in said] == alone(vlm, packed, 3)
    assert_empty(engine)
