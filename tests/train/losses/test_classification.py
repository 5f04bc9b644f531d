"""Classes beside plain sums in float64."""

import numpy as np
import pytest
import torch

from foveal.core.errors import InputError
from foveal.train.losses.classification import classification_loss

SCORES = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 6, 3, 3, 1])


def plain(scores: np.ndarray, shares: np.ndarray, smoothing: float) -> tuple[float, np.ndarray]:
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    wanted = (1 - smoothing) * shares + smoothing / scores.shape[1]
    return -(wanted * logs).sum(), np.exp(logs) - wanted


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_value_and_gradient(smoothing, mixed):
    shares = np.eye(7)[LABELS.numpy()]
    if mixed:
        shares = 0.3 * shares + 0.7 * shares[::-1]
    scores = SCORES.clone().requires_grad_()
    labels = torch.from_numpy(shares.copy()) if mixed else LABELS
    found = classification_loss(scores, labels, smoothing=smoothing)
    found.sum.backward()
    value, gradient = plain(SCORES.double().numpy(), shares, smoothing)
    assert found.weight == 5.0
    assert found.sum.item() == pytest.approx(value, rel=1e-6)  # worst seen: 6.0e-8
    assert np.abs(scores.grad.numpy() - gradient).max() < 1e-6  # worst seen: 5.6e-8


def test_scores_of_a_small_type_are_summed_in_float32():
    scores = SCORES.bfloat16().requires_grad_()
    found = classification_loss(scores, LABELS)
    found.sum.backward()
    value, _ = plain(scores.detach().double().numpy(), np.eye(7)[LABELS.numpy()], 0.0)
    assert found.sum.item() == pytest.approx(value, rel=1e-6)
    assert scores.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("labels", "smoothing", "message"),
    [
        (LABELS[:3], 0.0, r"shape \(3,\)"),
        (LABELS[:, None].float(), 0.0, r"shares of classes \[5, 7\]"),
        (LABELS + 1, 0.0, "reach from 1 to 7; the head has 7"),
        (LABELS - 1, 0.0, "reach from -1"),
        (LABELS, 1.0, "smoothing is 1.0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, smoothing, message):
    with pytest.raises(InputError, match=message):
        classification_loss(SCORES, labels, smoothing=smoothing)
