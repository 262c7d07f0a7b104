"""Element-wise layers that the golden numbers leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")

Build = Callable[..., Any]
X = np.linspace(-3, 3, 24).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("kind", "fields", "function"),
    [
        ("Swish", "swish_param { beta: 2 }", lambda x: x / (1 + np.exp(-2 * x))),
        ("Clip", "clip_param { min: -1 max: 0.5 }", lambda x: np.clip(x, -1, 0.5)),
        ("Exp", "exp_param { base: 3 scale: 0.5 shift: -1 }", lambda x: 3 ** (0.5 * x - 1)),
        ("Power", "power_param { power: 3 scale: -2 shift: 0.5 }", lambda x: (0.5 - 2 * x) ** 3),
        ("Power", "power_param { power: 2 scale: 0 shift: -3 }", lambda x: np.full_like(x, 9)),
        ("Reduction", "reduction_param { operation: ASUM axis: -1 coeff: 2 }", lambda x: 2 * np.abs(x).sum(-1)),
        ("Reduction", "reduction_param { operation: SUMSQ axis: 1 }", lambda x: (x**2).sum((1, 2))),
    ],
)
def test_values_and_gradients(
    one_layer: Build, kind: str, fields: str, function: Callable[[np.ndarray], np.ndarray]
) -> None:
    graph = one_layer(kind, fields, [X.shape])
    x = torch.from_numpy(X).requires_grad_()
    np.testing.assert_allclose(graph(x)["t0"].detach().numpy(), function(X), rtol=1e-9, atol=1e-12)
    if "scale: 0 " not in fields:
        assert torch.autograd.gradcheck(lambda v: graph(v)["t0"], x)


def test_dropout_in_training_keeps_the_mean_and_at_test_everything(one_layer: Build) -> None:
    torch.manual_seed(0)
    x = torch.ones(100, 100)
    top = one_layer("Dropout", "dropout_param { dropout_ratio: 0.25 }", [x.shape], phase=0)(x)["t0"]
    assert top.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert float(top.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(one_layer("Dropout", "", [x.shape])(x)["t0"], x)
    bayesian = one_layer("Dropout", "dropout_param { sample_weights_test: true }", [x.shape])(x)["t0"]
    assert 0 in bayesian


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("Dropout", "dropout_param { dropout_ratio: 1 }", "dropout_ratio: expected 0 <= ratio < 1, got 1.0"),
        ("Exp", "exp_param { base: 0 }", "base: expected a number above 0, or -1 for e, got 0.0"),
        ("Log", "log_param { base: 1 }", "base: expected anything but 1"),
        ("Clip", "clip_param { min: 0 }", "clip_param: expected min and max"),
    ],
)
def test_errors(one_layer: Build, kind: str, fields: str, message: str) -> None:
    from upscore.caffe.modules import LayerError

    with pytest.raises(LayerError, match=f"layer 'layer' .*{message}"):
        one_layer(kind, fields, [(2, 3)])(torch.ones(2, 3))


def test_prelu_needs_channels(one_layer: Build) -> None:
    from upscore.caffe.modules import LayerError

    with pytest.raises(LayerError, match=r"expected a bottom of at least 2 axes \(N, C\), got \(3,\)"):
        one_layer("PReLU", "", [(3,)])
