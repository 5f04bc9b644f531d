"""Sampling: each step by its definition, beside transformers' own steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foveal.core.errors import ConfigError, FovealError, InputError
from foveal.engine.request import Generation, Sampling, answer_tokens, stop_ids
from foveal.engine.sampling import best, choose, restrict

NONE = torch.tensor([], dtype=torch.long)


def generation(prompt=(), ids=(), **options):
    return Generation(sampling=Sampling(**options), prompt=list(prompt), max_tokens=99, ids=list(ids))


@given(st.integers(0, 10_000), st.integers(0, 60), st.floats(0.05, 1), st.floats(0, 0.9))
def test_restrictions_equal_transformers(seed, top_k, top_p, min_p):
    scores = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
    expected = scores[None].clone()
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    ours = restrict(scores.clone(), top_k, top_p, min_p)
    assert torch.equal(ours.isinf(), expected[0].isinf())
    assert torch.equal(ours[~ours.isinf()], scores[~ours.isinf()])


@given(st.integers(0, 10_000), st.lists(st.integers(0, 49), max_size=20), st.lists(st.integers(0, 49), max_size=20))
def test_greedy_with_repetition_penalty_equals_transformers(seed, prompt, ids):
    scores = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    history = torch.tensor([prompt + ids], dtype=torch.long)
    expected = scores[None].clone()
    if history.numel():
        expected = RepetitionPenaltyLogitsProcessor(1.7)(history, expected)
    assert choose(scores, generation(prompt, ids, repetition_penalty=1.7), NONE) == int(expected.argmax())


def test_presence_penalty_counts_the_answer_only():
    scores = torch.tensor([1.0, 0.9, 0.5])
    assert choose(scores.clone(), generation(prompt=[0], presence_penalty=0.3), NONE) == 0
    assert choose(scores.clone(), generation(ids=[0, 0], presence_penalty=0.3), NONE) == 1


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_banned_ids_never_come(temperature):
    scores = torch.tensor([9.0, 8.0, 0.0, 0.0])
    made = generation(temperature=temperature, seed=1)
    drawn = {choose(scores.clone(), made, torch.tensor([0, 1])) for _ in range(200)}
    assert drawn <= {2, 3}


def test_frequencies_follow_the_probabilities():
    scores = torch.tensor([0.0, 1.0, 2.0, 0.5])
    made = generation(temperature=0.7, seed=3)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[choose(scores.clone(), made, NONE)] += 1
    expected = (scores / 0.7).softmax(-1)
    assert (counts / 4000 - expected).abs().max() < 0.03  # three standard errors are 0.024


def test_a_seed_repeats_and_seeds_differ():
    scores = torch.zeros(1000)

    def draw(seed):
        made = generation(temperature=1.0, seed=seed)
        return [choose(scores.clone(), made, NONE) for _ in range(5)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_scores_that_are_not_numbers_stop():
    with pytest.raises(FovealError, match="not finite"):
        choose(torch.tensor([0.0, float("nan")]), generation(), NONE)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"repetition_penalty": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.0},
        {"max_tokens": 0},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 3.0},
        {"stop": ("",)},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match=rf"{next(iter(options))} is .*expected"):
        Sampling(**options)


def test_unknown_and_mistyped_options():
    with pytest.raises(InputError, match=r"unknown option 'temprature'; did you mean 'temperature'"):
        Sampling().changed({"temprature": 1})
    with pytest.raises(InputError, match=r"temperature: got 'hot' \(str\), expected float"):
        Sampling().changed({"temperature": "hot"})
    assert Sampling().changed({"stop": "END", "seed": None}).stop == ("END",)


def test_published_defaults():
    seven_b = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.0}
    assert Sampling.from_published(seven_b) == Sampling(temperature=0.01, top_p=0.001, top_k=1)
    assert Sampling.from_published({"temperature": 0.5, "repetition_penalty": 1.05}) == Sampling(
        repetition_penalty=1.05
    )
    assert Sampling.from_published({"do_sample": True}) == Sampling(temperature=1.0)
    with pytest.raises(ConfigError, match=r"generation_config\.json: top_p"):
        Sampling.from_published({"do_sample": True, "top_p": 7})


def test_stop_ids():
    assert stop_ids({"eos_token_id": [3, 4]}, 9) == {3, 4}
    assert stop_ids({"eos_token_id": 3}, 9) == {3}
    assert stop_ids({}, 9) == {9}
    for stated in ({}, "</s>", [3, None], True):
        with pytest.raises(ConfigError, match=r"eos_token_id is .* expected an id or a list of ids"):
            stop_ids({"eos_token_id": stated}, 9)


def test_length_when_nobody_says():
    assert answer_tokens({"max_new_tokens": 256}, 512) == 256
    assert answer_tokens({}, 512) == 512
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        answer_tokens({"max_new_tokens": 0}, 512)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(st.integers(0, 10_000), st.integers(1, 5), st.lists(st.integers(0, 49), max_size=45))
def test_the_best_token_is_allowed_and_of_finite_scores(dtype, seed, count, banned):
    scores = torch.randn(count, 50, generator=torch.Generator().manual_seed(seed)).to(dtype)
    scores[0, seed % 50] = (3.0, float("nan"), float("inf"), float("-inf"))[seed % 4]
    found = best(scores, torch.tensor(banned, dtype=torch.long))
    for token, row in zip(found, scores, strict=True):
        assert (token is None) == (not row.isfinite().all())
        allowed = [value for i, value in enumerate(row.tolist()) if i not in banned]
        assert token is None or (token not in banned and row[token] == max(allowed))
