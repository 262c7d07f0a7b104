"""Least squares with a penalty, by accelerated proximal steps whose objective never rises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["L1", "Minimum", "Penalty", "minimize", "total"]


class Penalty(Protocol):
    """A convex function g of the unknowns, whose first axis counts the problems."""

    def value(self, x: Tensor) -> Tensor:
        """g of each problem, ``(N,)``, in float64."""

    def proximal(self, x: Tensor, step: float) -> Tensor:
        """argmin over z of ``1/2 |z - x|^2 + step * g(z)``."""


class L1(NamedTuple):
    """``weight * |x|_1``; its proximal step shrinks towards zero.

    >>> L1(2.0).proximal(torch.tensor([[3.0, 0.5]]), 0.5)
    tensor([[2., 0.]])
    """

    weight: float

    def value(self, x: Tensor) -> Tensor:
        return self.weight * total(x.abs())

    def proximal(self, x: Tensor, step: float) -> Tensor:
        return torch.nn.functional.softshrink(x, self.weight * step)


class Minimum(NamedTuple):
    """What was found, and each problem's objective at the start and after every step, ``(steps + 1, N)``."""

    x: Tensor
    values: Tensor


def minimize(
    operator: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    target: Tensor,
    penalty: Penalty,
    start: Tensor,
    *,
    curvature: float,
    steps: int,
) -> Minimum:
    """Minimise ``1/2 |operator(x) - target|^2 + penalty(x)`` for N problems side by side.

    Args:
        operator, adjoint: a linear map and its adjoint; the first axis counts the problems.
        target: what ``operator(x)`` should be, ``(N, ...)``.
        penalty: the convex function beside the squares.
        start: the x to start from.
        curvature: a bound of the operator's squared norm.
        steps: how many, each one application of the operator and one of its adjoint.

    FISTA (Beck and Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems",
    section 4) with two changes that keep the objective from rising: a step that would raise it is not taken (as in
    the same authors' monotone variant, "Fast gradient-based algorithms for constrained total variation image
    denoising and deblurring problems", section V), and the momentum starts anew from there (O'Donoghue and Candès
    2015, "Adaptive restart for accelerated gradient schemes", section 3.2).
    """
    x, mapped = start, operator(start)
    value = total((mapped - target).square()) / 2 + penalty.value(x)
    values = [value]
    ahead, mapped_ahead = x, mapped
    momentum = torch.ones_like(value)
    for _ in range(steps):
        gradient = adjoint(mapped_ahead - target)
        z = penalty.proximal(torch.add(ahead, gradient, alpha=-1 / curvature), 1 / curvature)
        mapped_z = operator(z)
        value_z = total((mapped_z - target).square()) / 2 + penalty.value(z)
        lower = value_z < value
        if not lower.all():
            # Stay at x where the objective would rise: as momentum is 1 there, the next step starts from x itself.
            z, mapped_z = (torch.where(_like(lower, new), new, old) for new, old in ((z, x), (mapped_z, mapped)))
            value_z = torch.where(lower, value_z, value)
            momentum = torch.where(lower, momentum, 1.0)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        # lerp(x, z, 1 + a) = z + a * (z - x)
        weight = 1 + (momentum - 1) / following
        ahead, mapped_ahead = (torch.lerp(old, new, _like(weight, new)) for old, new in ((x, z), (mapped, mapped_z)))
        x, mapped, value = z, mapped_z, value_z
        momentum = torch.where(lower, following, 1.0)
        values.append(value)
    return Minimum(x, torch.stack(values))


def total(x: Tensor) -> Tensor:
    """The sum of each problem, ``(N,)``, in float64 but for the last axis (all of it would be slower)."""
    return x.sum(-1, keepdim=True).sum(tuple(range(1, x.dim())), dtype=torch.float64)


def _like(numbers: Tensor, x: Tensor) -> Tensor:
    """One number per problem, shaped and typed (unless they are flags) to meet ``x``."""
    shaped = numbers.reshape(-1, *(1,) * (x.dim() - 1))
    return shaped if shaped.dtype == torch.bool else shaped.to(x.dtype)
