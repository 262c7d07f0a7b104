"""Theano and the guide to convolution arithmetic.

Theano itself no longer installs. The oracle is what its documentation defines: the gradient, with respect to its
input, of a convolution with that border mode, subsampling and flip, taken by PyTorch's automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, check_reads_and_writes, draw_examples, expected, integers
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, theano
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

torch = pytest.importorskip("torch", reason="automatic differentiation is the oracle here")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gradient(case: Case) -> np.ndarray:
    """``d <conv(z), x> / dz`` for a z of the shape input_shape: what conv2d_grad_wrt_inputs computes."""
    p = case.parameters
    filters = torch.from_numpy(np.array(case.weights["filters"]))
    rank, groups = case.x.ndim - 2, p.get("num_groups", 1)
    if p.get("filter_flip", True):  # Theano's convolution flips; PyTorch's correlates
        filters = filters.flip(tuple(range(2, rank + 2)))
    extent = [d * (k - 1) + 1 for k, d in zip(filters.shape[2:], p.get("filter_dilation", (1,) * rank), strict=True)]
    mode = p.get("border_mode", "valid")
    if isinstance(mode, str):
        mode = {"valid": [0] * rank, "half": [e // 2 for e in extent], "full": [e - 1 for e in extent]}[mode]
    mode = [mode] * rank if isinstance(mode, int) else mode
    pads = [pair if isinstance(pair, (tuple, list)) else (pair, pair) for pair in mode]
    shape = p["input_shape"][2:] if p.get("input_shape") else None
    stride = p.get("subsample", (1,) * rank)
    if shape is None:  # the smallest, which the convolution leaves nothing of
        sizes = zip(case.x.shape[2:], stride, extent, pads, strict=True)
        shape = [(n - 1) * s + e - sum(pair) for n, s, e, pair in sizes]
    z = torch.zeros((len(case.x), filters.shape[1] * groups, *shape), requires_grad=True)
    padded = torch.nn.functional.pad(z, [a for pair in reversed(pads) for a in pair])
    convolve = getattr(torch.nn.functional, f"conv{rank}d")
    y = convolve(padded, filters, stride=stride, dilation=p.get("filter_dilation", 1), groups=groups)
    (found,) = torch.autograd.grad((y * torch.from_numpy(case.x)).sum(), z)
    bias = case.weights.get("bias")
    return found.numpy() + (0 if bias is None else bias.reshape(1, -1, *[1] * rank))


@st.composite
def calls(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((2, 2, 3)))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(2, 4)) for _ in range(rank)]
    kind = draw(st.sampled_from(("valid", "half", "full", "int", "tuple", "pairs")))
    if kind == "int":
        mode: Any = draw(st.integers(0, min(extent) // 2))
    elif kind == "tuple":
        mode = tuple(draw(st.integers(0, e // 2)) for e in extent)
    elif kind == "pairs":
        mode = tuple((draw(st.integers(0, e // 2)), draw(st.integers(0, e // 2))) for e in extent)
    else:
        mode = kind
    pads = {"valid": [0] * rank, "half": [2 * (e // 2) for e in extent], "full": [2 * e - 2 for e in extent]}.get(
        kind, [sum(p) if isinstance(p, tuple) else 2 * p for p in (mode if isinstance(mode, tuple) else [mode] * rank)]
    )
    least = [(n - 1) * s + e - p for n, s, e, p in zip(size, stride, extent, pads, strict=True)]
    while min(least) < 1:  # full border modes need larger inputs
        size = [n + 1 for n in size]
        least = [(n - 1) * s + e - p for n, s, e, p in zip(size, stride, extent, pads, strict=True)]
    groups = draw(st.sampled_from((1, 1, 2)))
    i, o = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"filters": integers(seed, groups * i, o, *kernel)}
    if draw(st.booleans()):
        weights["bias"] = integers(seed, groups * o)
    parameters = {
        "border_mode": mode,
        "subsample": tuple(stride),
        "filter_flip": draw(st.booleans()),
        "filter_dilation": tuple(dilation),
        "num_groups": groups,
    }
    if draw(st.booleans()):
        more = [m + draw(st.integers(0, s - 1)) for m, s in zip(least, stride, strict=True)]
        parameters["input_shape"] = (1, groups * o, *more)
    return Case(parameters, weights, integers(seed, 2, groups * i, *size), {"input_size": size})


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
def test_five_hundred_calls() -> None:
    check_reads_and_writes("theano", draw_examples(calls()), lambda cases: [gradient(case) for case in cases])


def layer_of(k: int, s: int = 1, p: Any = 0, *, input_shape: Any = None, n: int | None = None) -> Layer:
    said = {"filter_shape": (1, 1, k, k), "subsample": (s, s), "border_mode": p, "input_shape": input_shape}
    return theano.read(said, input_size=n)


def direct(x: np.ndarray, w: np.ndarray, s: int, pad: int, extra: int) -> np.ndarray:
    """The guide's "associated transposed convolution": the input stretched by s - 1 zeros, ``extra`` zeros added at the
    bottom and right, then convolved at stride 1 with padding ``pad``, the kernel turned by 180 degrees."""
    n = x.shape[-1]
    stretched = np.zeros((1, 1, *[(n - 1) * s + 1 + extra] * 2), np.float32)
    stretched[:, :, : (n - 1) * s + 1 : s, : (n - 1) * s + 1 : s] = x
    if pad < 0:
        stretched, pad = stretched[:, :, -pad:pad, -pad:pad], 0
    turned = torch.from_numpy(w[:, :, ::-1, ::-1].copy())
    return torch.nn.functional.conv2d(torch.from_numpy(np.ascontiguousarray(stretched)), turned, padding=pad).numpy()


def agrees(layer: Layer, n: int, size: int, s: int, pad: int, extra: int = 0) -> None:
    """Size as the relationship says, values as the direct convolution on the stretched input gives them."""
    assert layer.output_size(n) == (size, size)
    w = integers(n, *layer.weight_shape)
    x = integers(size, 1, 1, n, n)
    y = expected(layer.with_weights(w), x)
    assert np.array_equal(y, direct(x, w, s, pad, extra))


SIZES = [(n, k) for n in (2, 3, 5) for k in (1, 2, 3, 4)]


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_relationship_8_no_zero_padding_unit_strides(n: int, k: int) -> None:
    """o' = i' + (k - 1), a convolution with p' = k - 1."""
    agrees(layer_of(k), n, n + k - 1, 1, k - 1)


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("p", [1, 2])
def test_relationship_9_zero_padding_unit_strides(n: int, k: int, p: int) -> None:
    """o' = i' + (k - 1) - 2p, p' = k - p - 1."""
    if n + k - 1 - 2 * p >= 1 and p < k:
        agrees(layer_of(k, p=p), n, n + (k - 1) - 2 * p, 1, k - p - 1)
    else:
        with pytest.raises(ArgumentError, match="padding: expected a crop that leaves an output of at least 1"):
            layer_of(k, p=k + n).output_size(n)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_relationship_10_half_padding(n: int, k: int) -> None:
    """k = 2n + 1, p = floor(k / 2): o' = i'."""
    agrees(layer_of(k, p="half"), n, n, 1, k - k // 2 - 1)


@pytest.mark.parametrize(("n", "k"), [(5, 1), (5, 2), (5, 3), (6, 4)])
def test_relationship_11_full_padding(n: int, k: int) -> None:
    """p = k - 1: o' = i' - (k - 1), the plain convolution."""
    agrees(layer_of(k, p="full"), n, n - (k - 1), 1, 0)


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("s", [2, 3])
def test_relationship_12_no_zero_padding_strides(n: int, k: int, s: int) -> None:
    """i - k a multiple of s: o' = s(i' - 1) + k."""
    agrees(layer_of(k, s), n, s * (n - 1) + k, s, k - 1)


@pytest.mark.parametrize(("n", "k"), [(2, 3), (3, 3), (3, 4), (5, 5)])
@pytest.mark.parametrize("s", [2, 3])
@pytest.mark.parametrize("p", [1, 2])
def test_relationship_13_zero_padding_strides(n: int, k: int, s: int, p: int) -> None:
    """i + 2p - k a multiple of s: o' = s(i' - 1) + k - 2p, p' = k - p - 1."""
    agrees(layer_of(k, s, p), n, s * (n - 1) + k - 2 * p, s, k - p - 1)


@pytest.mark.parametrize(("n", "k"), [(2, 3), (3, 3), (3, 4), (5, 5)])
@pytest.mark.parametrize("s", [2, 3])
@pytest.mark.parametrize("p", [0, 1, 2])
def test_relationship_14_zero_padding_strides_odd(n: int, k: int, s: int, p: int) -> None:
    """a = (i + 2p - k) mod s zeros at the bottom and right: o' = s(i' - 1) + a + k - 2p, one convolution for each a."""
    for a in range(s):
        size = s * (n - 1) + a + k - 2 * p
        assert (size + 2 * p - k) % s == a
        agrees(layer_of(k, s, p, input_shape=(1, 1, size, size), n=n), n, size, s, k - p - 1, extra=a)


@pytest.mark.parametrize(
    ("parameters", "size", "message"),
    [
        ({"border_mode": "same"}, None, "border_mode: expected 'valid', 'half', 'full', integers or pairs, got 'same'"),
        ({"border_mode": -1}, None, "border_mode: expected an integer of at least 0, got -1"),
        ({"input_shape": (1, 1, 9, 9)}, None, "input_size: expected the size of output_grad beside input_shape"),
        ({"input_shape": (1, 1, 9, 9)}, 4, "input_shape: expected a shape whose convolution has the size 4"),
        ({"strides": 2}, None, "parameters: expected names that Theano has, got strides"),
    ],
)
def test_what_theano_does_not_take(parameters: dict[str, Any], size: int | None, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        theano.read({"filter_shape": (1, 1, 3, 3), **parameters}, input_size=size)


def test_without_filters_there_is_no_layer() -> None:
    with pytest.raises(ArgumentError, match="filter_shape: expected the filters' shape, where no weights are given"):
        theano.read({})


def test_filters_are_flipped_by_default() -> None:
    w = integers(0, 1, 1, 2, 3)
    assert np.array_equal(theano.read({}, {"filters": w}).weight, w[:, :, ::-1, ::-1])
    assert np.array_equal(theano.read({"filter_flip": False}, {"filters": w}).weight, w)


def test_refusals_and_code() -> None:
    with pytest.raises(RefusalError, match=r"border_mode: .* closest: filters of \(4, 3\) whose added taps are 0"):
        theano.write(Layer(Geometry(3, 2, 1, ((-1, 0), (0, 0))), 1, 1))
    with pytest.raises(RefusalError, match="rank: expected 2 or 3 spatial axes, got 1"):
        theano.write(Layer(Geometry(3), 1, 1))
    text = theano.code(Layer(Geometry(3, 2, 1, ((0, 1), (1, 1))), 2, 5))
    assert "size = (None, 5, 2 * x.shape[2] + 0, 2 * x.shape[3] + -1)" in text
    assert "border_mode=((0, 1), (1, 1))" in text
