"""The losses, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upscore.errors import ArgumentError
from upscore.training.losses import class_weights, cross_entropy, lovasz_softmax

VOID = 11
SHARES = np.array([0.5, 0.3, 0.15, 0.05])


def random_scores(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 4, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 5, 7), generator=generator)
    labels[labels == 4] = VOID
    return scores, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_by_loops(smoothing: float) -> None:
    scores, labels = random_scores()
    weights = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)
    total = 0.0
    for n, y, x in np.ndindex(*labels.shape):
        label = int(labels[n, y, x])
        if label == VOID:
            continue
        row = scores[n, :, y, x].numpy()
        logs = row - np.log(np.exp(row).sum())
        wanted = np.full(4, smoothing / 4)
        wanted[label] += 1 - smoothing
        total -= float((wanted * weights.numpy() * logs).sum())
    found = cross_entropy(scores, labels, void=VOID, weights=weights, smoothing=smoothing)
    assert float(found) == pytest.approx(total / labels.numel())


def test_the_mean_over_parts_is_that_of_the_whole() -> None:
    scores, labels = random_scores()
    labels[0, :, 1:] = VOID
    parts = [cross_entropy(scores[i : i + 1], labels[i : i + 1], void=VOID) for i in range(2)]
    whole = cross_entropy(scores, labels, void=VOID)
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_pictures_of_void_alone_cost_nothing() -> None:
    scores, labels = random_scores()
    scores.requires_grad_()
    labels[:] = VOID
    loss = cross_entropy(scores, labels, void=VOID) + lovasz_softmax(scores, labels, void=VOID)
    loss.backward()
    assert loss == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_of_certain_answers_the_lovasz_loss_is_one_minus_the_iou() -> None:
    _, labels = random_scores()
    answers = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(5))
    certain = 200.0 * torch.nn.functional.one_hot(answers, 4).movedim(-1, 1).double()
    known = labels != VOID
    expected = []
    for label in range(4):
        inside, called = (labels == label) & known, (answers == label) & known
        expected.append(1 - float((inside & called).sum() / (inside | called).sum()))
    assert float(lovasz_softmax(certain, labels, void=VOID)) == pytest.approx(np.mean(expected))


def test_the_lovasz_loss_is_the_extension_of_the_jaccard_loss() -> None:
    """Berman et al. 2018, equation 8 by its definition: differences of the set function along the sorted errors."""
    scores, labels = random_scores()
    known = (labels != VOID).numpy()
    truth = labels.numpy()[known]
    likely = scores.softmax(1).movedim(1, -1).numpy()[known]
    losses = []
    for label in range(4):
        inside = truth == label
        errors = np.where(inside, 1 - likely[:, label], likely[:, label])

        def jaccard(wrong: set[int], inside: np.ndarray = inside) -> float:
            correct = sum(1 for i in np.flatnonzero(inside) if i not in wrong)
            return 1 - correct / len(set(np.flatnonzero(inside)) | wrong)

        order = sorted(range(len(errors)), key=lambda i: -errors[i])
        sets = [set(order[:i]) for i in range(len(order) + 1)]
        losses.append(sum(errors[order[i]] * (jaccard(sets[i + 1]) - jaccard(sets[i])) for i in range(len(order))))
    assert float(lovasz_softmax(scores, labels, void=VOID)) == pytest.approx(np.mean(losses))


def test_gradients_of_both_losses() -> None:
    scores, labels = random_scores()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: cross_entropy(s, labels, void=VOID, smoothing=0.1), (scores,))
    assert torch.autograd.gradcheck(lambda s: lovasz_softmax(s, labels, void=VOID), (scores,))


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ("none", np.ones(4)),
        ("enet", 1 / np.log(1.02 + SHARES)),
        ("median", 0.225 / SHARES),
        ("root", np.sqrt(0.225 / SHARES)),
    ],
)
def test_class_weights(balance: str, expected: np.ndarray) -> None:
    found = class_weights(SHARES, balance).double().numpy()
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-6)
    assert (found * SHARES).sum() == pytest.approx(1)


def test_a_class_without_pixels_weighs_one() -> None:
    assert class_weights(np.array([0.25, 0.0, 0.75]), "enet")[1] == 1


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"balance: expected one of none, enet, median, root, got 'fair'; for exam"):
        class_weights(SHARES, "fair")
