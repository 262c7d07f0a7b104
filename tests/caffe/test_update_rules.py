"""The update rules: against torch's optimizers where they say the same, against closed forms where not."""

import math

import pytest
import torch

from upscore.caffe.update_rules import SGD, AdaDelta, AdaGrad, Adam, Nesterov, RMSProp, clip_gradients, regularize
from upscore.errors import ArgumentError

STEPS = 12


def run(rule, rate, gradients, start):
    """The parameter after each step of ``rule``."""
    parameter, history = start.clone(), [torch.zeros_like(start) for _ in range(rule.slots)]
    path = []
    for iteration, gradient in enumerate(gradients):
        update = gradient.clone()
        rule(update, history, rate, iteration)
        parameter -= update
        path.append(parameter.clone())
    return torch.stack(path)


def run_torch(optimizer, gradients, start, **kwargs):
    """The same of an optimizer of torch."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizer([parameter], **kwargs)
    path = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return torch.stack(path)


@pytest.fixture
def gradients():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(STEPS, 3, 5, generator=generator, dtype=torch.float64)


@pytest.fixture
def start():
    return torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(3, 5)


@pytest.mark.parametrize(
    ("rule", "optimizer", "kwargs"),
    [
        (SGD(), torch.optim.SGD, {}),
        (SGD(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
        (Nesterov(momentum=0.9), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (AdaGrad(delta=1e-3), torch.optim.Adagrad, {"eps": 1e-3}),
        (RMSProp(decay=0.8, delta=1e-3), torch.optim.RMSprop, {"alpha": 0.8, "eps": 1e-3}),
        (AdaDelta(momentum=0.7, delta=1e-4), torch.optim.Adadelta, {"rho": 0.7, "eps": 1e-4}),
        # delta = 0, because Caffe's and torch's sit on different sides of the bias correction
        (Adam(momentum=0.6, momentum2=0.95, delta=0), torch.optim.Adam, {"betas": (0.6, 0.95), "eps": 0}),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "slots") else None,
)
def test_at_a_constant_rate_agrees_with_torch(rule, optimizer, kwargs, gradients, start):
    expected = run_torch(optimizer, gradients, start, lr=0.05, **kwargs)
    torch.testing.assert_close(run(rule, 0.05, gradients, start), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [SGD(momentum=0.5), Nesterov(momentum=0.5)], ids=["SGD", "Nesterov"])
def test_the_rate_sits_inside_the_momentum(rule):
    """With a rate of 0 the momentum of earlier updates goes on; in PyTorch nothing would move."""
    history, update = [torch.zeros(1)], torch.ones(1)
    rule(update, history, 0.1, 0)
    update = torch.ones(1)
    rule(update, history, 0.0, 1)
    factor = 0.5 if isinstance(rule, SGD) else 0.5**2  # Nesterov: (1 + m) * m*h - m * h
    assert update.item() == pytest.approx(0.1 * factor, rel=1e-6)


def test_adam_adds_delta_after_the_bias_correction():
    """For a constant gradient m = (1 - b1^t) g and v = (1 - b2^t) g^2, so every step is known."""
    rule = Adam(momentum=0.9, momentum2=0.99, delta=0.5)
    history = [torch.zeros(1, dtype=torch.float64) for _ in range(2)]
    for iteration in range(5):
        update = torch.full((1,), 3.0, dtype=torch.float64)
        rule(update, history, 0.1, iteration)
        root = math.sqrt(1 - 0.99 ** (iteration + 1))
        assert update.item() == pytest.approx(0.1 * root * 3 / (root * 3 + 0.5), rel=1e-12)


def test_clipping_scales_all_gradients_to_the_common_norm():
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert clip_gradients(gradients, 1.0) == pytest.approx(5)
    assert gradients[0].tolist() == pytest.approx([0.6, 0])
    assert gradients[1].tolist() == [pytest.approx([0.8])]


@pytest.mark.parametrize("limit", [-1.0, 5.0, 7.0])
def test_clipping_leaves_small_gradients_alone(limit):
    gradients = [torch.tensor([3.0, 4.0])]
    assert clip_gradients(gradients, limit) == pytest.approx(5)
    assert gradients[0].tolist() == [3, 4]


def test_a_limit_of_zero_clips_everything():
    gradients = [torch.tensor([3.0, 4.0])]
    clip_gradients(gradients, 0.0)
    assert gradients[0].tolist() == [0, 0]


@pytest.mark.parametrize(("kind", "expected"), [("L2", [1 - 0.2, 1 + 0.3, 1]), ("L1", [1 - 0.1, 1 + 0.1, 1])])
def test_regularization_adds_the_gradient_of_the_norm(kind, expected):
    gradient = torch.ones(3)
    regularize(gradient, torch.tensor([-2.0, 3.0, 0.0]), 0.1, kind)
    assert gradient.tolist() == pytest.approx(expected)


def test_an_unknown_regularization_is_named():
    with pytest.raises(ArgumentError, match='regularization_type: expected "L1" or "L2", got \'L3\''):
        regularize(torch.ones(1), torch.ones(1), 0.1, "L3")
