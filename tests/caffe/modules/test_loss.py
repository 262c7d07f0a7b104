"""Losses that the golden numbers do not cover, against NumPy and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")

Build = Callable[..., Any]
RNG = np.random.default_rng(0)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge(one_layer: Build, norm: str) -> None:
    x, label = RNG.standard_normal((5, 4)), RNG.integers(0, 4, 5)
    margin = np.maximum(0, 1 + np.where(np.arange(4) == label[:, None], -x, x))
    expected = (margin if norm == "L1" else margin**2).sum() / 5
    graph = one_layer("HingeLoss", f"hinge_loss_param {{ norm: {norm} }}", [(5, 4), (5,)])
    scores = torch.from_numpy(x).requires_grad_()
    loss = graph({"b0": scores, "b1": torch.from_numpy(label.astype(np.float64))})["t0"]
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(lambda s: graph({"b0": s, "b1": torch.from_numpy(label)})["t0"], scores)


@pytest.mark.parametrize("legacy", ["false", "true"])
def test_contrastive(one_layer: Build, legacy: str) -> None:
    a, b, y = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 4)), np.array([0, 1, 0, 0, 1, 0])
    d = np.sqrt(((a - b) ** 2).sum(1))
    apart = np.maximum(3 - d**2, 0) if legacy == "true" else np.maximum(3 - d, 0) ** 2
    fields = f"contrastive_loss_param {{ margin: 3 legacy_version: {legacy} }}"
    graph = one_layer("ContrastiveLoss", fields, [(6, 4), (6, 4), (6,)])
    x = torch.from_numpy(a).requires_grad_()
    others = {"b1": torch.from_numpy(b), "b2": torch.from_numpy(y)}
    assert graph({"b0": x, **others})["t0"].item() == pytest.approx(np.where(y, d**2, apart).sum() / 12, rel=1e-6)
    assert torch.autograd.gradcheck(lambda v: graph({"b0": v, **others})["t0"], x)


def test_multinomial(one_layer: Build) -> None:
    p, label = softmax(RNG.standard_normal((6, 3)), 1), RNG.integers(0, 3, 6)
    graph = one_layer("MultinomialLogisticLoss", "", [(6, 3), (6,)])
    loss = graph({"b0": torch.from_numpy(p), "b1": torch.from_numpy(label)})["t0"]
    assert float(loss) == pytest.approx(-np.log(p[np.arange(6), label]).mean())


@pytest.mark.parametrize("source", ["bottom", "file"])
def test_infogain(one_layer: Build, tmp_path: Path, source: str) -> None:
    from upscore.caffe import caffemodel

    x, label = RNG.standard_normal((2, 3, 4, 5)), RNG.integers(0, 3, (2, 1, 4, 5))
    matrix = RNG.uniform(0, 1, (3, 3)).astype(np.float32)
    label[0, 0, 0, :2] = 255
    caffemodel.write_mean(tmp_path / "h", matrix.reshape(1, 1, 3, 3))
    valid = label[:, 0] != 255
    each = -np.einsum("nhwk,nkhw->nhw", matrix[np.where(valid, label[:, 0], 0)], np.log(softmax(x, 1)))
    fields = "loss_param { ignore_label: 255 }"
    shapes = [x.shape, label.shape]
    blobs = {"b0": torch.from_numpy(x), "b1": torch.from_numpy(label.astype(np.float32))}
    if source == "file":
        fields += f' infogain_loss_param {{ source: "{tmp_path / "h"}" }}'
    else:
        shapes.append((1, 1, 3, 3))
        blobs["b2"] = torch.from_numpy(matrix).reshape(1, 1, 3, 3)
    graph = one_layer("InfogainLoss", fields, shapes, tops=2)
    tops = graph(blobs)
    assert float(tops["t0"]) == pytest.approx(each[valid].sum() / valid.sum(), rel=1e-6)
    np.testing.assert_allclose(tops["t1"].numpy(), softmax(x, 1), rtol=1e-6)


def test_class_weighting_of_segnet(one_layer: Build) -> None:
    x, label = RNG.standard_normal((2, 3, 4, 5)), RNG.integers(0, 3, (2, 1, 4, 5))
    weights = np.array([0.5, 2, 1.25])
    fields = "loss_param { weight_by_label_freqs: true class_weighting: 0.5 class_weighting: 2 class_weighting: 1.25 }"
    graph = one_layer("SoftmaxWithLoss", fields, [x.shape, label.shape])
    p = np.take_along_axis(softmax(x, 1), label, 1)
    expected = (-np.log(p) * weights[label]).sum() / label.size
    loss = graph({"b0": torch.from_numpy(x), "b1": torch.from_numpy(label)})["t0"]
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "fields", ["", "normalize: false", "normalization: FULL", "normalization: NONE", "ignore_label: 1"]
)
def test_the_softmax_losss_gradient_is_its_derivative(one_layer: Build, fields: str) -> None:
    label = torch.from_numpy(RNG.integers(0, 3, (2, 4)))
    graph = one_layer("SoftmaxWithLoss", f"loss_param {{ {fields} }}", [(2, 3, 4), (2, 4)])
    x = torch.from_numpy(RNG.standard_normal((2, 3, 4))).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: graph({"b0": s, "b1": label})["t0"], x)


@pytest.mark.parametrize(
    ("kind", "shapes", "fields", "labels", "message"),
    [
        (
            "SoftmaxWithLoss",
            [(2, 3), (2,)],
            "",
            [0, 3],
            r"expected labels 0 to 2, got 0 to 3; labels to pass over are named by",
        ),
        (
            "SoftmaxWithLoss",
            [(2, 3), (2,)],
            "loss_param { ignore_label: 9 }",
            [0, -1],
            "expected labels 0 to 2, got -1 to 0",
        ),
        ("SoftmaxWithLoss", [(2, 3, 4, 4), (2, 3)], "", None, r"expected 32 labels for scores \(2, 3, 4, 4\)"),
        ("EuclideanLoss", [(2, 3), (2, 4)], "", None, "expected two bottoms of the same size"),
        ("SigmoidCrossEntropyLoss", [(2, 3), (2, 4)], "", None, "expected scores and targets of the same size"),
        ("HingeLoss", [(2, 3), (3,)], "", None, "expected one label for each of"),
        ("InfogainLoss", [(2, 3), (2,)], "", None, "expected the infogain matrix as third bottom or as"),
        ("InfogainLoss", [(2, 3), (2,), (2, 2)], "", None, "expected an infogain matrix of 3 x 3"),
        ("Accuracy", [(2, 3), (2,)], "", [0, 7], "expected labels 0 to 2, got 0 to 7"),
        ("ArgMax", [(2, 3)], "argmax_param { top_k: 4 }", None, "top_k: expected 1 to 3, got 4"),
    ],
)
def test_errors(
    one_layer: Build, kind: str, shapes: list[tuple[int, ...]], fields: str, labels: list[int] | None, message: str
) -> None:
    from upscore.caffe.modules import LayerError

    with pytest.raises(LayerError, match=f"layer 'layer' .*{message}"):
        one_layer(kind, fields, shapes)({"b0": torch.zeros(2, 3), "b1": torch.tensor(labels or [0.0])})


def test_argmax_with_values_and_an_axis(one_layer: Build) -> None:
    x = torch.from_numpy(RNG.integers(0, 4, (2, 6, 3)).astype(np.float32))  # with ties
    values = one_layer("ArgMax", "argmax_param { axis: 1 top_k: 2 out_max_val: true }", [x.shape])(x)["t0"].numpy()
    index = one_layer("ArgMax", "argmax_param { axis: 1 top_k: 2 }", [x.shape])(x)["t0"].numpy()
    for n, w in np.ndindex(2, 3):
        pairs = sorted(((x[n, c, w].item(), c) for c in range(6)), reverse=True)[:2]  # of ties the larger index
        assert [(v, int(i)) for v, i in zip(values[n, :, w], index[n, :, w], strict=True)] == pairs
