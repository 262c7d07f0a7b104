"""The learning rate policies: against torch's schedulers and against what their formulas imply."""

import math

import pytest
import torch

from upscore.caffe.learning_rate import POLICIES, LearningRate
from upscore.errors import ArgumentError


def from_torch(scheduler, base, iterations, **kwargs):
    """The rates that a scheduler of torch gives, one per iteration."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    schedule = scheduler(optimizer, **kwargs)
    rates = []
    for _ in range(iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("rate", "scheduler", "kwargs"),
    [
        (LearningRate("fixed", 0.3), torch.optim.lr_scheduler.ConstantLR, {"factor": 1.0}),
        (
            LearningRate("step", 0.3, gamma=0.5, stepsize=7),
            torch.optim.lr_scheduler.StepLR,
            {"step_size": 7, "gamma": 0.5},
        ),
        (LearningRate("exp", 0.3, gamma=0.9), torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.9}),
        (
            LearningRate("multistep", 0.3, gamma=0.1, stepvalues=(3, 4, 11)),
            torch.optim.lr_scheduler.MultiStepLR,
            {"milestones": [3, 4, 11], "gamma": 0.1},
        ),
        (
            LearningRate("poly", 0.3, power=0.9, max_iter=25),
            torch.optim.lr_scheduler.PolynomialLR,
            {"total_iters": 25, "power": 0.9},
        ),
        (
            LearningRate("inv", 0.3, gamma=0.1, power=0.75),
            torch.optim.lr_scheduler.LambdaLR,
            {"lr_lambda": lambda i: 1 / math.exp(0.75 * math.log(1 + 0.1 * i))},
        ),
        (
            LearningRate("sigmoid", 0.3, gamma=0.2, stepsize=9),
            torch.optim.lr_scheduler.LambdaLR,
            {"lr_lambda": lambda i: torch.sigmoid(torch.tensor(0.2 * (i - 9), dtype=torch.float64)).item()},
        ),
    ],
    ids=lambda value: value.policy if isinstance(value, LearningRate) else None,
)
def test_agrees_with_torch(rate, scheduler, kwargs):
    expected = from_torch(scheduler, 0.3, 20, **kwargs)
    assert [rate(i) for i in range(20)] == pytest.approx(expected, rel=1e-12)


def test_every_policy_of_caffe_is_there():
    assert set(POLICIES) == {"fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid"}


def test_poly_stays_at_zero_past_its_end():
    rate = LearningRate("poly", 0.1, power=0.5, max_iter=4)
    assert [rate(i) for i in (4, 5, 100)] == [0, 0, 0]


def test_sigmoid_far_from_its_middle_does_not_overflow():
    rate = LearningRate("sigmoid", 1.0, gamma=10.0, stepsize=100_000)
    assert rate(0) == 0
    assert rate(200_000) == 1


def test_steps_taken_counts_the_step_values_passed():
    rate = LearningRate("multistep", 1.0, gamma=0.1, stepvalues=(2, 5))
    assert [rate.steps_taken(i) for i in (0, 1, 2, 4, 5, 9)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "cosine"}, "lr_policy: expected one of fixed, step, exp, .* got 'cosine'"),
        ({"policy": "step"}, "stepsize: expected at least 1 for the policy step, got 0"),
        ({"policy": "poly", "power": 1}, "max_iter: expected at least 1 for the policy poly, got 0"),
        ({"policy": "sigmoid", "gamma": -0.1}, "gamma: expected at least 0 for the policy sigmoid, got -0.1"),
    ],
)
def test_errors_name_the_field(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        LearningRate(base=0.1, **arguments)
