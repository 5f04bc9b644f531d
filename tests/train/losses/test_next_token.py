"""Cross-entropy of learned tokens beside plain sums in float64."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from foveal.core.errors import InputError
from foveal.core.packed import Packed, Span, join
from foveal.train.losses.next_token import Targets, next_token_loss, targets
from foveal.train.losses.weighted import Weighted

VOCAB, WIDTH = 19, 8


def pack(length: int, learned: list[tuple[int, int]], seed: int = 0) -> Packed:
    """One sequence without media; the `learned` stretches are the assistant's."""
    edges = sorted({0, length, *itertools.chain(*learned)})
    return Packed(
        tokens=np.random.default_rng(seed).integers(0, VOCAB, length),
        positions=np.arange(length)[None],
        starts=np.array([0, length]),
        deltas=np.zeros(1, np.int64),
        patches=np.zeros((0, 3), np.float32),
        grids=np.zeros((0, 3), np.int64),
        spans=tuple(
            Span(start=a, stop=b, role="assistant" if (a, b) in learned else "user", learned=(a, b) in learned)
            for a, b in itertools.pairwise(edges)
        ),
    )


def batch() -> Packed:
    return join([pack(7, [(3, 5)]), pack(5, [(0, 2), (4, 5)], 1), pack(4, [], 2)])


def plain(scores: np.ndarray, goal: Targets) -> tuple[float, np.ndarray]:
    """The sum and its gradient for scores after every token, row by row in float64."""
    total, gradient = 0.0, np.zeros(scores.shape)
    for place, token, weight in zip(goal.places, goal.tokens, goal.weights, strict=True):
        row = scores[place].astype(np.float64)
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        total -= weight * np.log(shares[token])
        gradient[place] += weight * (shares - np.eye(len(row))[token])
    return total, gradient


def test_targets_are_the_learned_tokens_that_have_one_before_them():
    goal = targets(batch())
    # Sequence 2 begins with a learned token (7): what stands before it belongs to another conversation.
    assert goal.places.tolist() == [2, 3, 7, 10]
    assert goal.tokens.tolist() == batch().tokens[[3, 4, 8, 11]].tolist()
    assert goal.weight == 4.0


def test_weights_belong_to_the_token_that_is_said():
    weights = np.zeros(16, np.float32)
    weights[[3, 8, 9]] = 2.0, 0.5, 7.0
    goal = targets(batch(), weights)
    assert goal.places.tolist() == [2, 7]
    assert goal.weights.tolist() == [2.0, 0.5]
    assert goal.weight == 2.5


def test_an_empty_sequence_is_no_trouble():
    empty = dataclasses.replace(batch(), starts=np.array([0, 0, 7, 12, 16, 16]), deltas=np.zeros(5, np.int64))
    assert targets(empty).places.tolist() == [2, 3, 7, 10]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3, np.float32), "shape .3,.; the pack has 16 tokens"),
        (-np.ones(16, np.float32), "not negative"),
        (np.full(16, np.nan, np.float32), "finite"),
    ],
)
def test_odd_weights_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        targets(batch(), weights)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
@pytest.mark.parametrize("rows", ["all", "places"])
@pytest.mark.parametrize("headed", [False, True])
def test_value_and_gradients(chunk, rows, headed):
    weights = np.random.default_rng(4).uniform(0.1, 2, 16).astype(np.float32)
    goal = targets(batch(), weights)
    hidden = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    matrix = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)
    passed = hidden if rows == "all" else hidden[goal.places]
    if headed:
        found = next_token_loss(passed, goal, head=lambda x: x @ matrix.T, chunk=chunk)
    else:
        found = next_token_loss(passed @ matrix.T, goal, chunk=chunk)
    found.sum.backward()
    h, m = hidden.detach().double().numpy(), matrix.detach().double().numpy()
    value, gradient = plain(h @ m.T, goal)
    assert found.weight == pytest.approx(weights[[3, 4, 8, 11]].sum(dtype=np.float64))
    assert found.sum.item() == pytest.approx(value, rel=1e-6)  # worst seen: 9.7e-8
    for name, tensor, wanted in (("hidden", hidden, gradient @ m), ("head", matrix, gradient.T @ h)):
        worst = np.abs(tensor.grad.numpy() - wanted).max() / np.abs(wanted).max()
        assert worst < 1e-6, name  # worst seen: 3.3e-7


def test_scores_of_a_small_type_are_summed_in_float32():
    """Logarithms of 8 bits would be off by 1 %; the gradient is of the scores' type."""
    goal = targets(batch())
    scores = (4 * torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    found = next_token_loss(scores, goal)
    assert found.sum.dtype == torch.float32
    found.sum.backward()
    value, gradient = plain(scores.detach().float().numpy(), goal)
    assert found.sum.item() == pytest.approx(value, rel=1e-6)
    assert scores.grad.dtype == torch.bfloat16
    assert np.abs(scores.grad.float().numpy() - gradient).max() < 2**-9  # half a step of bfloat16 at 1


def test_scores_never_stand_in_float32_all_at_once():
    """The largest float32 tensor that the loss makes has `chunk` rows, forward and backward."""
    rows, chunk = 512, 32
    long = pack(rows + 1, [(1, rows + 1)])
    scores = torch.randn(rows, VOCAB).bfloat16().requires_grad_()
    with Largest() as seen:
        next_token_loss(scores, targets(long), chunk=chunk).sum.backward()
    assert 0 < seen.rows <= chunk


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Most rows of a float32 matrix [*, VOCAB] that any operation returned."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.shape[1:] == (VOCAB,):
            self.rows = max(self.rows, len(result))
        return result


def test_with_a_head_no_more_than_a_chunk_of_scores_is_kept():
    rows, chunk = 512, 32
    goal = targets(pack(rows + 1, [(1, rows + 1)]))
    hidden = torch.randn(rows, WIDTH, requires_grad=True)
    matrix = torch.randn(VOCAB, WIDTH, requires_grad=True)
    with Largest() as seen:
        next_token_loss(hidden, goal, head=lambda x: x @ matrix.T, chunk=chunk).sum.backward()
    assert 0 < seen.rows <= chunk


@pytest.mark.parametrize("headed", [False, True])
def test_nothing_learned_is_zero_with_gradients(headed):
    """Processes that wait for the gradients of this one must get some."""
    goal = targets(pack(4, []))
    hidden = torch.randn(4, WIDTH, requires_grad=True)
    matrix = torch.randn(VOCAB, WIDTH, requires_grad=True)
    if headed:
        found = next_token_loss(hidden, goal, head=lambda x: x @ matrix.T)
    else:
        found = next_token_loss(hidden @ matrix.T, goal)
    found.sum.backward()
    assert (found.sum.item(), found.weight, found.mean.item()) == (0.0, 0.0, 0.0)
    assert hidden.grad.abs().max() == 0
    assert matrix.grad.abs().max() == 0


def test_packs_add_up():
    """Two packs of different lengths give the mean over all tokens, not over packs."""
    parts = [pack(9, [(2, 9)]), pack(4, [(3, 4)], 1)]
    scores = 5 * torch.randn(13, VOCAB, generator=torch.Generator().manual_seed(0))
    one, two = (next_token_loss(scores[a:b], targets(p)) for p, (a, b) in zip(parts, ((0, 9), (9, 13)), strict=True))
    whole = next_token_loss(scores, targets(join(parts)))
    together = Weighted(one.sum + two.sum, one.weight + two.weight)
    torch.testing.assert_close(together.mean, whole.mean)
    assert abs(whole.mean - (one.mean + two.mean) / 2) > 0.05


@pytest.mark.parametrize(("rows", "chunk", "message"), [(5, 4, "5 rows, but 4 tokens are learned"), (16, 0, "chunk")])
def test_rows_that_do_not_fit_are_refused(rows, chunk, message):
    with pytest.raises(InputError, match=message):
        next_token_loss(torch.zeros(rows, VOCAB), targets(batch()), chunk=chunk)
