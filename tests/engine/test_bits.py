"""bfloat16 on a CPU with the own kernels: scores are the same bits alone, beside others and as guesses."""

import pytest
import torch

import foveal
from foveal.engine.engine import Engine
from foveal.engine.options import EngineOptions
from foveal.engine.request import Sampling
from foveal.nn.native import dense

pytestmark = pytest.mark.skipif(
    dense.way() != dense.TILES, reason="without tiles, or a compiler, many rows and few are computed in other orders"
)
QUESTIONS = (
    "What is a crown?",
    "Repeat: one two three one two three one two three.",
    "Where?",
    "Is it red or blue? " * 9,
)


@pytest.fixture(scope="module")
def nano():
    model = foveal.load(device="cpu")
    assert model.network.dtype == torch.bfloat16
    return model


def answers(model, questions, **options):
    """Tokens and log-probabilities of each answer; all requests come at once."""
    engine = Engine(model, EngineOptions(**options))
    for question in questions:
        sampling = Sampling(max_tokens=12, temperature=0.0, logprobs=3, ignore_eos=True)
        engine.add(model.process(question), sampling, id=question)
    found = {question: [] for question in questions}
    while engine.busy:
        for event in engine.step():
            found[event.id].append((event.token, event.logprob, event.top))
    return found, engine.stats()


def test_company_changes_no_bit(nano):
    alone = {}
    for question in QUESTIONS:
        alone |= answers(nano, [question])[0]
    together, _ = answers(nano, QUESTIONS)
    assert together == alone
    backwards, _ = answers(nano, QUESTIONS[::-1], max_requests=3)
    assert backwards == alone


def test_guesses_change_no_bit(nano):
    plain, _ = answers(nano, QUESTIONS)
    guessed, stats = answers(nano, QUESTIONS, speculate=4)
    assert stats.guessed > 0
    assert guessed == plain
