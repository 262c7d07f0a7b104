"""Pooling, Upsample and Unpooling against the loops of their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe.modules import LayerError  # noqa: E402

Build = Callable[..., Any]
LEAST = -np.finfo(np.float32).max


def by_definition(
    x: np.ndarray, method: str, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Windows as Caffe's pooling_layer.cpp describes them: sizes round up, with padding the last starts inside."""
    sizes = []
    for n, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True):
        m = math.ceil((n + 2 * p - k) / s) + 1
        sizes.append(m - 1 if p and (m - 1) * s >= n + p else m)
    values = np.zeros((*x.shape[:2], *sizes), np.float64)
    mask = np.full(values.shape, -1.0)
    for n, c, i, j in np.ndindex(*values.shape):
        starts = [a * s - p for a, s, p in zip((i, j), stride, pad, strict=True)]
        ends = [min(a + k, size + p) for a, k, size, p in zip(starts, kernel, x.shape[2:], pad, strict=True)]
        area = (ends[0] - starts[0]) * (ends[1] - starts[1])
        window = [
            (h, w) for h in range(max(starts[0], 0), min(ends[0], x.shape[2]))
            for w in range(max(starts[1], 0), min(ends[1], x.shape[3]))
        ]  # fmt: skip
        if method == "AVE":
            values[n, c, i, j] = sum(float(x[n, c, h, w]) for h, w in window) / area if area else 0
        elif method == "STOCHASTIC":
            total = sum(float(x[n, c, h, w]) for h, w in window)
            values[n, c, i, j] = sum(float(x[n, c, h, w]) ** 2 for h, w in window) / total if total > 0 else 0
        else:
            values[n, c, i, j] = LEAST
            for h, w in window:
                if x[n, c, h, w] > values[n, c, i, j]:
                    values[n, c, i, j], mask[n, c, i, j] = x[n, c, h, w], h * x.shape[3] + w
    return values, mask


WINDOWS = [
    ((3, 2), (2, 1), (1, 0), (6, 7)),
    ((2, 3), (2, 3), (0, 0), (7, 8)),
    ((3, 3), (1, 1), (2, 2), (5, 4)),  # padding of more than half a kernel
    ((5, 4), (3, 2), (4, 3), (6, 9)),
    ((1, 2), (3, 3), (0, 0), (5, 8)),  # windows that lie outside
    ((4, 4), (5, 2), (0, 0), (9, 6)),
    ((7, 7), (2, 2), (3, 3), (3, 2)),  # a kernel larger than the image
    ((2, 3), (2, 3), (0, 0), (6, 9)),  # blocks side by side
    ((3, 2), (3, 2), (0, 0), (7, 9)),
    ((3, 3), (3, 3), (0, 0), (8, 1)),
    ((1, 2), (1, 2), (0, 0), (3, 5)),
    ((2, 2), (2, 2), (1, 1), (4, 5)),  # the last window is clipped away
]


@pytest.mark.parametrize(("kernel", "stride", "pad", "size"), WINDOWS)
@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_windows(
    one_layer: Build,
    method: str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    size: tuple[int, int],
) -> None:
    names = ("kernel", "stride", "pad")
    fields = " ".join(f"{name}_h: {h} {name}_w: {w}" for name, (h, w) in zip(names, (kernel, stride, pad), strict=True))
    tops = 2 if method == "MAX" else 1
    graph = one_layer("Pooling", f"pooling_param {{ pool: {method} {fields} }}", [(2, 3, *size)], tops)
    x = np.random.default_rng(0).integers(-3, 4, (2, 3, *size)).astype(np.float32)  # with ties
    values, mask = by_definition(x, method, kernel, stride, pad)
    top = graph(torch.from_numpy(x))
    assert graph.shapes["t0"] == values.shape
    np.testing.assert_allclose(top["t0"].numpy(), values, rtol=1e-6, atol=1e-6)
    if tops == 2:
        np.testing.assert_array_equal(top["t1"].numpy(), mask)


@pytest.mark.parametrize(
    "fields", ["kernel_size: 3 stride: 2", "kernel_size: 3 stride: 2 pad: 1", "kernel_size: 3 pad: 2"]
)
def test_nan_infinity_and_the_least_number_never_win(one_layer: Build, fields: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 7, 8)).astype(np.float32)
    x[0, 0, 1:4, 2:6] = np.nan
    x[0, 1] = -np.inf
    x[1, 0, 3] = LEAST
    x[1, 1, 2, 2] = np.inf
    words = fields.replace(":", "").split()
    numbers = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    k, s, p = numbers["kernel_size"], numbers.get("stride", 1), numbers.get("pad", 0)
    values, mask = by_definition(x, "MAX", (k, k), (s, s), (p, p))
    top = one_layer("Pooling", f"pooling_param {{ {fields} }}", [x.shape], 2)(torch.from_numpy(x))
    np.testing.assert_array_equal(top["t0"].numpy(), values)
    np.testing.assert_array_equal(top["t1"].numpy(), mask)
    assert (mask == -1).any()


@pytest.mark.parametrize(("kernel", "stride", "pad", "size"), WINDOWS)
def test_without_a_mask_and_without_gradients_the_values_are_the_same(
    one_layer: Build, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], size: tuple[int, int]
) -> None:
    names = zip(("kernel", "stride", "pad"), (kernel, stride, pad), strict=True)
    fields = " ".join(f"{name}_h: {h} {name}_w: {w}" for name, (h, w) in names)
    graph = one_layer("Pooling", f"pooling_param {{ {fields} }}", [(2, 3, *size)])
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    for broken in (False, True):
        x[0, 0, 0, 0] = np.nan if broken else x[0, 0, 0, 0]
        values, _ = by_definition(x, "MAX", kernel, stride, pad)
        with torch.no_grad():
            np.testing.assert_array_equal(graph(torch.from_numpy(x))["t0"].numpy(), values)
        learned = torch.from_numpy(x).requires_grad_()
        np.testing.assert_array_equal(graph(learned)["t0"].detach().numpy(), values)


def test_ties_give_the_gradient_to_the_first(one_layer: Build) -> None:
    graph = one_layer("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", [(1, 1, 2, 4)])
    x = torch.ones(1, 1, 2, 4, requires_grad=True)
    graph(x)["t0"].sum().backward()
    assert x.grad[0, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_no_gradient_where_nothing_won(one_layer: Build) -> None:
    graph = one_layer("Pooling", "pooling_param { kernel_size: 1 stride: 3 }", [(1, 1, 5, 4)])
    x = torch.randn(1, 1, 5, 4, requires_grad=True)
    graph(x)["t0"].clamp(min=-10).sum().backward()
    expected = np.zeros((5, 4))
    expected[::3, ::3] = 1
    np.testing.assert_array_equal(x.grad[0, 0].numpy(), expected)


def test_stochastic_at_test_is_the_expectation(one_layer: Build) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 6)).astype(np.float32).clip(0)
    x[0, 0] = 0
    graph = one_layer("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }", [x.shape])
    values, _ = by_definition(x, "STOCHASTIC", (3, 3), (2, 2), (0, 0))
    np.testing.assert_allclose(graph(torch.from_numpy(x))["t0"].numpy(), values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("kernel_h: 2", "expected either kernel_size, or both kernel_h and kernel_w"),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 2", "expected either kernel_size, or both"),
        ("kernel_size: 3 pad_h: 1", "expected either pad, or both pad_h and pad_w"),
        ("kernel_size: 2 stride_w: 1", "expected either stride, or both"),
        ("stride: 2", "kernel_size: expected at least 1, got 0; for example kernel_size: 2"),
        ("kernel_size: 2 stride: 0", "stride: expected at least 1, got 0"),
        ("kernel_size: 2 pad: 2", r"expected padding smaller than the kernel \(2, 2\), got \(2, 2\)"),
        ("global_pooling: true kernel_size: 2", "global_pooling takes its kernel from the bottom"),
        ("global_pooling: true stride: 2", "global_pooling expects pad 0 and stride 1"),
        ("kernel_size: 9", r"the output of a \(5, 6\) bottom would have size \(-3, -2\); give a larger input"),
        ("pool: STOCHASTIC kernel_size: 3 pad: 1", "STOCHASTIC pooling runs at test and without padding only"),
    ],
)
def test_pooling_errors(one_layer: Build, fields: str, message: str) -> None:
    with pytest.raises(LayerError, match=rf"layer 'layer' \(Pooling\): {message}"):
        one_layer("Pooling", f"pooling_param {{ {fields} }}", [(1, 2, 5, 6)])


def test_only_max_has_a_mask(one_layer: Build) -> None:
    with pytest.raises(LayerError, match="only MAX pooling has a mask"):
        one_layer("Pooling", "pooling_param { pool: AVE kernel_size: 2 }", [(1, 2, 5, 6)], 2)


UPSAMPLES = [
    ("Upsample", "upsample_param { upsample_h: 5 upsample_w: 8 }", (5, 8)),
    ("Upsample", "upsample_param { scale: 2 pad_out_h: true }", (5, 8)),
    ("Upsample", "upsample_param { scale_h: 2 scale_w: 3 }", (6, 12)),
    ("Unpooling", "unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_h: 5 unpool_w: 8 }", (5, 8)),
    ("Unpooling", "unpooling_param { kernel_size: 3 stride: 2 }", (7, 9)),
    ("Unpooling", "unpooling_param { kernel_size: 2 stride: 2 unpool_size: 9 }", (9, 9)),
]


@pytest.mark.parametrize(("kind", "fields", "size"), UPSAMPLES)
def test_values_go_where_the_mask_says(one_layer: Build, kind: str, fields: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 3, 4)).astype(np.float32)
    mask = rng.integers(-1, size[0] * size[1], x.shape).astype(np.float32)  # some named twice, some nowhere
    expected = np.zeros((2, 3, size[0] * size[1]), np.float32)
    for n, c, i, j in np.ndindex(*x.shape):
        if mask[n, c, i, j] >= 0:
            expected[n, c, int(mask[n, c, i, j])] = x[n, c, i, j]
    graph = one_layer(kind, fields, [x.shape, x.shape])
    values = torch.from_numpy(x).requires_grad_()
    top = graph({"b0": values, "b1": torch.from_numpy(mask)})["t0"]
    assert tuple(top.shape) == graph.shapes["t0"] == (2, 3, *size)
    np.testing.assert_array_equal(top.detach().numpy(), expected.reshape(top.shape))
    given = torch.from_numpy(rng.standard_normal(top.shape).astype(np.float32))
    top.backward(given)
    flat, read = given.reshape(2, 3, -1).numpy(), np.zeros_like(x)
    for n, c, i, j in np.ndindex(*x.shape):  # as the forks read it: also places that another value took
        read[n, c, i, j] = flat[n, c, int(mask[n, c, i, j])] if mask[n, c, i, j] >= 0 else 0
    np.testing.assert_array_equal(values.grad.numpy(), read)


def test_pooling_and_back_is_torchs_max_unpool(one_layer: Build) -> None:
    x = torch.randn(2, 3, 8, 6)
    pooled = one_layer("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", [x.shape], 2)(x)
    up = one_layer("Upsample", "upsample_param { scale: 2 }", [(2, 3, 4, 3)] * 2)
    values, indices = torch.nn.functional.max_pool2d(x, 2, 2, return_indices=True)
    expected = torch.nn.functional.max_unpool2d(values, indices, 2, 2)
    assert torch.equal(up({"b0": pooled["t0"], "b1": pooled["t1"]})["t0"], expected)


def test_without_a_mask(one_layer: Build) -> None:
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    nearest = one_layer("Upsample", "upsample_param { scale: 2 }", [x.shape])(x)["t0"]
    assert nearest[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    corners = one_layer("Unpooling", "unpooling_param { kernel_size: 2 stride: 2 }", [x.shape])(x + 1)["t0"]
    assert corners.shape[2:] == (5, 5)
    assert corners[0, 0, ::2, ::2][:2, :2].tolist() == [[1, 2], [3, 4]]
    assert corners.sum() == 10


@pytest.mark.parametrize(
    ("kind", "fields", "shapes", "message"),
    [
        ("Upsample", "", [(1, 2, 3, 4), (1, 2, 3, 3)], r"expected values and mask of one shape \(N, C, H, W\)"),
        ("Upsample", "upsample_param { scale_h: 2 }", [(1, 2, 3, 4)], "expected both scale_h and scale_w, or scale"),
        ("Upsample", "upsample_param { scale: 0 }", [(1, 2, 3, 4)], "scale: expected at least 1, got 0"),
        (
            "Unpooling",
            "unpooling_param { kernel_size: 2 pad: 1 }",
            [(1, 2, 3, 4)],
            "expected unpool: MAX without padding",
        ),
        ("Unpooling", "", [(1, 2, 3, 4)], "kernel_size and stride: expected at least 1"),
    ],
)
def test_unpooling_errors(
    one_layer: Build, kind: str, fields: str, shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(LayerError, match=message):
        one_layer(kind, fields, shapes)


def test_a_mask_of_another_net_is_an_error(one_layer: Build) -> None:
    graph = one_layer("Upsample", "upsample_param { scale: 2 }", [(1, 1, 2, 2)] * 2)
    with pytest.raises(LayerError, match="expected a mask within planes of 4 x 4, got places up to 16; does the size"):
        graph({"b0": torch.ones(1, 1, 2, 2), "b1": torch.full((1, 1, 2, 2), 16.0)})
