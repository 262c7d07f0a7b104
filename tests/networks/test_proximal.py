"""Accelerated proximal steps: the objective never rises, and where they end the optimality conditions hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from upscore.networks.proximal import L1, Minimum, minimize, total

PENALTY = 0.3


def problems(rows: int = 12, columns: int = 20, count: int = 3) -> tuple[Tensor, Tensor]:
    """A matrix and the targets of ``count`` problems, ``(count, 1, rows)``."""
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return matrix, torch.randn(count, 1, rows, generator=generator, dtype=torch.float64) * torch.tensor(
        [[[1.0]], [[5]], [[0.1]]]
    )


def solve(matrix: Tensor, targets: Tensor, *, steps: int, curvature: float) -> Minimum:
    start = targets.new_zeros(*targets.shape[:2], matrix.shape[1])
    return minimize(
        lambda x: x @ matrix.T, lambda y: y @ matrix, targets, L1(PENALTY), start, curvature=curvature, steps=steps
    )


def norm2(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2)) ** 2


def test_the_objective_never_rises_and_is_what_it_says() -> None:
    matrix, targets = problems()
    found = solve(matrix, targets, steps=300, curvature=norm2(matrix))
    assert found.values.shape == (301, 3)
    assert (found.values.diff(dim=0) <= 0).all()
    squares = ((found.x @ matrix.T - targets) ** 2).sum((1, 2)) / 2
    torch.testing.assert_close(found.values[-1], squares + PENALTY * found.x.abs().sum((1, 2)))


def test_the_end_is_a_minimum() -> None:
    """The subgradient contains zero: the correlation with what is left is the penalty, with the sign of x."""
    matrix, targets = problems()
    x = solve(matrix, targets, steps=3000, curvature=norm2(matrix)).x
    correlation = (targets - x @ matrix.T) @ matrix
    assert correlation.abs().max() <= PENALTY * (1 + 1e-6)
    torch.testing.assert_close(correlation[x != 0], PENALTY * x[x != 0].sign(), rtol=0, atol=1e-6)
    assert 0 < (x != 0).sum() < x.numel() / 2


def test_momentum_pays() -> None:
    """After as many steps, closer to the minimum than plain proximal steps."""
    matrix, targets = problems()
    best = solve(matrix, targets, steps=3000, curvature=norm2(matrix)).values[-1]
    x, step = targets.new_zeros(3, 1, 20), 1 / norm2(matrix)
    for _ in range(60):
        x = L1(PENALTY).proximal(x - step * (x @ matrix.T - targets) @ matrix, step)
    plain = ((x @ matrix.T - targets) ** 2).sum((1, 2)) / 2 + PENALTY * x.abs().sum((1, 2))
    ours = solve(matrix, targets, steps=60, curvature=norm2(matrix)).values[-1]
    assert (ours[:2] - best[:2] < (plain[:2] - best[:2]) / 2).all()


def test_a_step_that_would_raise_the_objective_is_not_taken() -> None:
    """As with a curvature far too small, where plain steps explode."""
    matrix, targets = problems()
    found = solve(matrix, targets, steps=40, curvature=norm2(matrix) / 50)
    assert (found.values.diff(dim=0) <= 0).all()
    assert found.x.isfinite().all()


def test_problems_are_solved_as_if_alone() -> None:
    matrix, targets = problems()
    together = solve(matrix, targets, steps=50, curvature=norm2(matrix)).x
    alone = torch.cat([solve(matrix, target[None], steps=50, curvature=norm2(matrix)).x for target in targets])
    torch.testing.assert_close(together, alone)


def test_an_orthonormal_operator_needs_one_step() -> None:
    targets = torch.tensor([[[3.0, -0.2, -2.0]]])
    found = solve(torch.eye(3), targets, steps=1, curvature=1.0)
    torch.testing.assert_close(found.x, torch.tensor([[[2.7, 0.0, -1.7]]]))


@pytest.mark.parametrize("shape", [(2, 5), (3, 4, 5), (1, 2, 3, 4)])
def test_total_is_a_sum_per_problem(shape: tuple[int, ...]) -> None:
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    assert total(x).dtype == torch.float64
    torch.testing.assert_close(total(x), x.double().flatten(1).sum(1))
