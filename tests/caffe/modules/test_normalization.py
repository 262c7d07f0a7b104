"""The forks' normalizations, and running statistics, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")

Build = Callable[..., Any]
SHAPE = (3, 4, 5, 6)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) * 3 + 1


def channels(values: np.ndarray) -> np.ndarray:
    return values.reshape(1, -1, 1, 1)


def set_blobs(graph: Any, *values: np.ndarray) -> None:
    for blob, value in zip(graph.layers[-1].module.blobs, values, strict=True):
        blob.data.copy_(torch.from_numpy(np.asarray(value, np.float32).reshape(blob.shape)))


def test_bn_of_segnet_in_inference_is_scale_and_shift(one_layer: Build, x: np.ndarray) -> None:
    fields = "bn_param { bn_mode: INFERENCE scale_filler { value: 1 } shift_filler { value: 0.001 } }"
    graph = one_layer("BN", fields, [SHAPE])
    scale, shift = graph.layers[-1].module.blobs
    assert tuple(scale.shape) == tuple(shift.shape) == (1, 4, 1, 1)
    assert (scale.unique().tolist(), shift.unique().item()) == ([1], pytest.approx(0.001))
    a, b = np.arange(1, 5), np.arange(4) - 2.5
    set_blobs(graph, a, b)
    np.testing.assert_allclose(
        graph(torch.from_numpy(x))["t0"].detach().numpy(), x * channels(a) + channels(b), rtol=1e-6
    )


def test_bn_of_segnet_that_learns(one_layer: Build, x: np.ndarray) -> None:
    graph = one_layer("BN", "bn_param { scale_filler { value: 2 } shift_filler { value: 3 } }", [SHAPE], tops=3)
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    tops = graph(torch.from_numpy(x))
    np.testing.assert_allclose(
        tops["t0"].detach().numpy(), (x - mean) / np.sqrt(var + 1e-9) * 2 + 3, rtol=2e-5, atol=2e-5
    )
    np.testing.assert_allclose(tops["t1"].detach().numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(tops["t2"].detach().numpy(), var, rtol=1e-5)


def test_bn_of_pspnet_keeps_statistics(one_layer: Build, x: np.ndarray) -> None:
    fields = "bn_param { slope_filler { value: 2 } bias_filler { value: 1 } frozen: true momentum: 0.95 }"
    graph = one_layer("BN", fields, [SHAPE], phase=0)
    assert [tuple(b.shape) for b in graph.layers[-1].module.blobs] == [(1, 4, 1, 1)] * 4
    assert graph.layers[-1].lr_mult == [1, 1, 0, 0]
    mean, var = np.arange(4), np.arange(4) + 0.5
    set_blobs(graph, np.full(4, 2), np.full(4, 1), mean, var)
    expected = (x - channels(mean)) / np.sqrt(channels(var) + 1e-5) * 2 + 1
    np.testing.assert_allclose(graph(torch.from_numpy(x))["t0"].detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    learning = one_layer("BN", fields.replace("frozen: true", ""), [SHAPE], phase=0)
    learning(torch.from_numpy(x))
    np.testing.assert_allclose(
        learning.layers[-1].module.blobs[2].reshape(-1).numpy(), 0.05 * x.mean((0, 2, 3)), rtol=1e-4
    )


def test_batch_norm_accumulates_as_caffe(one_layer: Build, x: np.ndarray) -> None:
    graph = one_layer("BatchNorm", "batch_norm_param { moving_average_fraction: 0.9 }", [SHAPE], phase=0)
    set_blobs(graph, np.arange(4), np.arange(4), [5])
    graph(torch.from_numpy(x))
    mean, var, factor = (b.numpy() for b in graph.layers[-1].module.blobs)
    m = 3 * 5 * 6
    np.testing.assert_allclose(mean, 0.9 * np.arange(4) + x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(var, 0.9 * np.arange(4) + x.var((0, 2, 3)) * m / (m - 1), rtol=1e-5)
    assert factor == pytest.approx(5 * 0.9 + 1)
    assert not any(b.requires_grad for b in graph.layers[-1].module.blobs)


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_normalize_divides_by_the_2_norm(one_layer: Build, x: np.ndarray, across: bool, shared: bool) -> None:
    said = f"across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()} scale_filler {{ value: 20 }}"
    graph = one_layer("Normalize", f"norm_param {{ {said} }}", [SHAPE])
    assert tuple(graph.layers[-1].module.blobs[0].shape) == (() if shared else (4,))
    norm = np.sqrt((x.astype(np.float64) ** 2).sum((1, 2, 3) if across else 1, keepdims=True) + 1e-10)
    np.testing.assert_allclose(graph(torch.from_numpy(x))["t0"].detach().numpy(), x / norm * 20, rtol=1e-5)


def test_errors(one_layer: Build) -> None:
    from upscore.caffe.modules import LayerError

    with pytest.raises(LayerError, match="expected an odd local_size and 4 axes, got 4"):
        one_layer("LRN", "lrn_param { local_size: 4 }", [SHAPE])
    with pytest.raises(LayerError, match=r"expected a bottom of 4 axes \(N, C, H, W\), got \(2, 3\)"):
        one_layer("BN", "", [(2, 3)])
    graph = one_layer("BatchNorm", "", [SHAPE])
    with pytest.raises(LayerError, match="expected a bottom of 4 channels, got"):
        graph(torch.zeros(1, 5, 2, 2))
