"""The learning rate policies of Caffe's solvers: one pure function of the iteration each.

Source: the comment on ``lr_policy`` in Caffe's ``SolverParameter`` (caffe/src/caffe/proto/caffe.proto).
Iterations count from 0.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from upscore.errors import ArgumentError

__all__ = ["POLICIES", "LearningRate"]


@dataclass(frozen=True)
class LearningRate:
    """A schedule: the rate as a function of the iteration.

    Args:
        policy: one of :data:`POLICIES`.
        base: the rate that the policy starts from (``base_lr``).
        gamma, power: the policy's factor and exponent.
        stepsize: iterations per step (``step``), or the middle of the curve (``sigmoid``).
        stepvalues: the iterations at which ``multistep`` takes a step.
        max_iter: the iteration at which ``poly`` reaches 0.

    Raises:
        ArgumentError: for a policy that does not exist or lacks a number it needs.

    >>> LearningRate("step", base=0.1, gamma=0.5, stepsize=10)(25)
    0.025
    """

    policy: str
    base: float
    gamma: float = 0.0
    power: float = 0.0
    stepsize: int = 0
    stepvalues: tuple[int, ...] = ()
    max_iter: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ArgumentError("lr_policy", f"one of {', '.join(POLICIES)}", repr(self.policy), 'lr_policy: "fixed"')
        if self.policy == "step" and self.stepsize < 1:
            raise ArgumentError("stepsize", "at least 1 for the policy step", self.stepsize, "stepsize: 1000")
        if self.policy == "poly" and self.max_iter < 1:
            raise ArgumentError("max_iter", "at least 1 for the policy poly", self.max_iter, "max_iter: 1000")
        if self.policy == "sigmoid" and self.gamma < 0:
            # Caffe checks this too, so its sigmoid can only rise.
            raise ArgumentError("gamma", "at least 0 for the policy sigmoid", self.gamma, "gamma: 0.1")

    def steps_taken(self, iteration: int) -> int:
        """How many steps ``multistep`` has taken by this iteration (``current_step`` of a solverstate)."""
        return bisect_right(sorted(self.stepvalues), iteration)

    def __call__(self, iteration: int) -> float:
        """The rate of this iteration."""
        return self.base * POLICIES[self.policy](self, iteration)


def _fixed(rate: LearningRate, iteration: int) -> float:
    return 1.0


def _step(rate: LearningRate, iteration: int) -> float:
    return float(rate.gamma ** (iteration // rate.stepsize))


def _exp(rate: LearningRate, iteration: int) -> float:
    return float(rate.gamma**iteration)


def _inv(rate: LearningRate, iteration: int) -> float:
    return float((1 + rate.gamma * iteration) ** -rate.power)


def _multistep(rate: LearningRate, iteration: int) -> float:
    return float(rate.gamma ** rate.steps_taken(iteration))


def _poly(rate: LearningRate, iteration: int) -> float:
    # A solver that is stepped past max_iter would get a power of a negative number.
    return float(max(0.0, 1 - iteration / rate.max_iter) ** rate.power)


def _sigmoid(rate: LearningRate, iteration: int) -> float:
    # tanh does not overflow where exp(-gamma * (iteration - stepsize)) does.
    return (1 + math.tanh(rate.gamma * (iteration - rate.stepsize) / 2)) / 2


POLICIES: dict[str, Callable[[LearningRate, int], float]] = {
    "fixed": _fixed,
    "step": _step,
    "exp": _exp,
    "inv": _inv,
    "multistep": _multistep,
    "poly": _poly,
    "sigmoid": _sigmoid,
}
"""Policy name -> the factor on the base rate at an iteration."""
