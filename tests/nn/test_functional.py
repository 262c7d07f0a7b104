"""The functions against torch's: values, gradients of any order, formats, dtypes, and what torch refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.nn import functional

OURS = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
TORCHS: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

# (x, w, terms): no axis like another, groups, dilation, output padding.
ASYMMETRIC: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 4, 7), (4, 3, 5), {"stride": 3, "padding": 1, "output_padding": 2, "groups": 2}),
    (
        (2, 4, 3, 4),
        (4, 3, 3, 2),
        {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "groups": 2, "dilation": (2, 1)},
    ),
    ((1, 3, 4, 3), (3, 2, 2, 4), {"stride": (1, 2), "padding": (0, 1), "dilation": (1, 3)}),
    ((1, 2, 2, 3, 2), (2, 2, 3, 1, 2), {"stride": (2, 1, 3), "padding": (1, 0, 0), "output_padding": (1, 0, 2)}),
]


def tensors(
    x: tuple[int, ...], w: tuple[int, ...], groups: int = 1, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = x, w, (w[1] * groups,)
    a, b, c = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return a, b, c


def error(y: Tensor, exact: Tensor) -> float:
    """The relative error in the 2-norm; shapes must be equal."""
    assert y.shape == exact.shape
    y, exact = y.detach(), exact.detach()
    return float((y.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


@st.composite
def cases(draw: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    rank = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    per_axis = lambda low, high: st.tuples(*[st.integers(low, high)] * rank)  # noqa: E731
    kernel, stride, dilation = draw(per_axis(1, 5)), draw(per_axis(1, 4)), draw(per_axis(1, 3))
    n = draw(per_axis(1, 5))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    full = [(ni - 1) * s + d * (k - 1) + 1 for ni, s, d, k in zip(n, stride, dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, min(3, (m - 1) // 2))) for m in full)
    x = (draw(st.integers(0, 3)), groups * draw(st.integers(1, 3)), *n)
    w = (x[1], draw(st.integers(1, 3)), *kernel)
    terms = {
        "stride": stride,
        "padding": padding,
        "output_padding": extra,
        "groups": groups,
        "dilation": dilation,
    }
    return rank, x, w, terms


@given(cases(), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_values_are_torchs(case: Any, bias: bool, dtype: torch.dtype) -> None:
    rank, x_shape, w_shape, terms = case
    x, w, b = tensors(x_shape, w_shape, terms["groups"], dtype)
    exact = TORCHS[rank - 1](x.double(), w.double(), b.double() if bias else None, **terms)
    y = OURS[rank - 1](x, w, b if bias else None, **terms)
    assert y.dtype == dtype
    assert error(y, exact) <= (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize(("x_shape", "w_shape", "terms"), ASYMMETRIC)
def test_gradients_are_torchs(x_shape: Any, w_shape: Any, terms: dict[str, Any]) -> None:
    args = tensors(x_shape, w_shape, terms.get("groups", 1))
    for a in args:
        a.requires_grad_()
    ours = OURS[len(x_shape) - 3](*args, **terms)
    theirs = TORCHS[len(x_shape) - 3](*args, **terms)
    g = torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, args, g), torch.autograd.grad(theirs, args, g), strict=True):
        assert error(a, b) <= 1e-14


@pytest.mark.parametrize(("x_shape", "w_shape", "terms"), ASYMMETRIC[1:2] + ASYMMETRIC[3:])
def test_gradients_of_any_order_are_derivatives(x_shape: Any, w_shape: Any, terms: dict[str, Any]) -> None:
    args = [a.requires_grad_() for a in tensors(x_shape, w_shape, terms.get("groups", 1))]
    function = lambda *a: OURS[len(x_shape) - 3](*a, **terms)  # noqa: E731
    assert torch.autograd.gradcheck(function, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, args, fast_mode=True)
    only_w = lambda w: function(args[0].detach(), w, None)  # noqa: E731
    assert torch.autograd.gradcheck(only_w, args[1:2], fast_mode=True)


def test_third_derivatives_are_torchs() -> None:
    x, w, _ = tensors((1, 2, 3), (2, 2, 3))

    def third(function: Callable[..., Tensor]) -> Tensor:
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        value = function(a, b, stride=2).pow(4).sum()
        for _ in range(2):
            value = sum(g.pow(2).sum() for g in torch.autograd.grad(value, (a, b), create_graph=True))
        return torch.autograd.grad(value, a)[0]

    assert error(third(functional.conv_transpose1d), third(F.conv_transpose1d)) <= 1e-13


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_wanted_gradients_are_made(wanted: tuple[bool, ...]) -> None:
    args = [a.requires_grad_(want) for a, want in zip(tensors((1, 2, 3, 4), (2, 3, 2, 3)), wanted, strict=True)]
    functional.conv_transpose2d(*args, stride=2).sum().backward()
    assert [a.grad is not None for a in args] == list(wanted)


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("w_last", [False, True])
def test_memory_format_is_torchs(x_last: bool, w_last: bool, records: bool) -> None:
    x, w, b = tensors((2, 4, 3, 5), (4, 6, 3, 2), dtype=torch.float32)
    x = x.to(memory_format=torch.channels_last) if x_last else x
    w = w.to(memory_format=torch.channels_last) if w_last else w
    theirs = F.conv_transpose2d(x, w, b, stride=2)
    ours = functional.conv_transpose2d(x.requires_grad_(records), w, b, stride=2)
    assert ours.stride() == theirs.stride()
    assert error(ours, theirs) <= 1e-6


def test_channels_last_3d() -> None:
    x, w, b = tensors((2, 4, 3, 5, 2), (4, 6, 3, 2, 1), dtype=torch.float32)
    y = functional.conv_transpose3d(x.to(memory_format=torch.channels_last_3d), w, b, stride=2)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert error(y, F.conv_transpose3d(x, w, b, stride=2)) <= 1e-6


def test_views_of_any_kind() -> None:
    x, w, b = tensors((4, 2, 5, 3), (3, 4, 2, 3))
    exact = F.conv_transpose2d(x.permute(1, 3, 0, 2).contiguous(), w, b, stride=(1, 2))
    assert error(functional.conv_transpose2d(x.permute(1, 3, 0, 2), w, b, stride=(1, 2)), exact) <= 1e-14
    expanded = x[:1, :, :1].expand(4, 2, 5, 3)
    w2 = w.transpose(0, 1)[:2, :, ::1].flip(-1)
    assert error(functional.conv_transpose2d(expanded, w2), F.conv_transpose2d(expanded, w2)) <= 1e-14
    negative = torch.complex(x, x).conj().imag  # a view with its negative bit set
    assert negative.is_neg()
    w4 = w.transpose(0, 1)[:2]
    assert error(functional.conv_transpose2d(negative, w4), F.conv_transpose2d(-x, w4)) <= 1e-14


@pytest.mark.parametrize("records", [False, True])
def test_unbatched_and_empty_batches(records: bool) -> None:
    x, w, b = tensors((4, 3, 5), (4, 2, 3, 2), groups=2)
    w.requires_grad_(records)
    exact = F.conv_transpose2d(x, w, b, 2, 1, 1, 2)
    assert error(functional.conv_transpose2d(x, w, b, 2, 1, 1, 2), exact) <= 1e-14
    assert functional.conv_transpose2d(x[None][:0], w, b, 2, 1, 1, 2).shape == (0, *exact.shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("records", [False, True])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype, records: bool) -> None:
    x, w, b = tensors((2, 64, 5, 3), (64, 3, 4, 2), dtype=dtype)
    exact = F.conv_transpose2d(x.float(), w.float(), b.float(), stride=2)
    y = functional.conv_transpose2d(x.requires_grad_(records), w, b, stride=2)
    assert y.dtype == dtype
    assert error(y, exact.to(dtype)) <= 1e-4
    if records:
        assert torch.autograd.grad(y.sum(), x)[0].dtype == dtype


def test_other_dtypes_and_devices_are_torchs() -> None:
    x, w, b = tensors((1, 2, 3, 4), (2, 3, 2, 2))
    z, v = torch.complex(x, x), torch.complex(w, -w)
    assert torch.equal(functional.conv_transpose2d(z, v, stride=2), F.conv_transpose2d(z, v, stride=2))
    meta = functional.conv_transpose2d(x.to("meta"), w.to("meta"), b.to("meta"), stride=2, padding=((0, 1), (1, 0)))
    assert meta.is_meta
    assert meta.shape == (1, 3, 5, 7)


# --- beyond torch ---


@pytest.mark.parametrize("records", [False, True])
def test_pairs_cut_each_side_alone(records: bool) -> None:
    x, w, b = tensors((2, 4, 3, 5), (4, 3, 4, 3), groups=2)
    full = F.conv_transpose2d(x, w, b, stride=(2, 3), groups=2)
    y = functional.conv_transpose2d(
        x, w.requires_grad_(records), b, stride=(2, 3), padding=((1, 0), (0, 2)), groups=2, output_padding=(0, 1)
    )
    assert error(y, full[:, :, 1:, :-1]) <= 1e-14


def test_valid_cuts_nothing() -> None:
    x, w, b = tensors((1, 2, 3, 4), (2, 3, 3, 2))
    assert error(functional.conv_transpose2d(x, w, b, 2, "valid"), F.conv_transpose2d(x, w, b, 2)) <= 1e-14


def test_output_size_cuts_and_fills_at_the_end() -> None:
    x, w, b = tensors((1, 2, 3, 4), (2, 3, 3, 2))
    full = F.conv_transpose2d(x, w, b, stride=2, padding=(1, 0))
    y = functional.conv_transpose2d(x, w, b, stride=2, padding=(1, 0), output_size=(4, 10))
    assert error(y[..., :8], full[..., :4, :]) <= 1e-14
    assert torch.equal(y[..., 8:], b.view(1, 3, 1, 1).expand(1, 3, 4, 2))


@pytest.mark.parametrize("stride", [(1, 1), (2, 3), (3, 2), (4, 4)])
@pytest.mark.parametrize("kernel", [(1, 2), (3, 4), (5, 3)])
def test_same_is_tensorflows(stride: tuple[int, int], kernel: tuple[int, int]) -> None:
    tf = pytest.importorskip("tensorflow", reason="TensorFlow defines SAME")
    x, w, b = tensors((2, 4, 3, 5), (4, 3, *kernel), dtype=torch.float32)
    for size in [(3 * stride[0], 5 * stride[1]), (2 * stride[0] + 1, 5 * stride[1] - (stride[1] > 1))]:
        theirs = tf.nn.conv2d_transpose(
            x.permute(0, 2, 3, 1).numpy(), w.permute(2, 3, 1, 0).numpy(), (2, *size, 3), stride, "SAME"
        )
        ours = functional.conv_transpose2d(x, w, None, stride, "same", output_size=size)
        assert error(ours, torch.from_numpy(theirs.numpy()).permute(0, 3, 1, 2)) <= 1e-6
    assert functional.conv_transpose2d(x, w, b, stride, "same").shape == (2, 3, 3 * stride[0], 5 * stride[1])


# --- refusals ---

X, W = torch.zeros(2, 4, 5, 6), torch.zeros(4, 3, 3, 2)

REFUSED: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((X, W), {"stride": 0}, RuntimeError, "stride: expected an integer of at least 1, got 0"),
    ((X, W), {"stride": (1, 1, 1)}, RuntimeError, r"stride: .*got \(1, 1, 1\)"),
    ((X, W), {"stride": 1.5}, TypeError, r"stride: expected an integer of at least 1, got 1\.5"),
    ((X, W), {"stride": "two"}, TypeError, "stride: .*got 'two'"),
    ((X, W), {"padding": -1}, RuntimeError, "padding: expected an integer of at least 0, got -1"),
    ((X, W), {"padding": 9}, RuntimeError, "padding: expected a crop that leaves an output of at least 1"),
    ((X, W), {"output_padding": 1}, RuntimeError, "output_padding: expected less than the larger of stride 1"),
    ((X, W), {"dilation": 0}, RuntimeError, "dilation: expected an integer of at least 1, got 0"),
    ((X, W), {"groups": 3}, RuntimeError, "groups: expected a divisor of the 4 channels .*, got 3"),
    ((X, W), {"groups": 0}, RuntimeError, "groups: expected an integer of at least 1, got 0"),
    ((X, W.double()), {}, RuntimeError, "weight: expected the dtype and device of input, torch.float32 on cpu"),
    ((X, W, torch.zeros(3).double()), {}, RuntimeError, "bias: expected the dtype .*got torch.float64"),
    ((X, W, torch.zeros(4)), {}, RuntimeError, r"bias: expected shape \(3,\).*got shape \(4,\)"),
    ((X[:, :3], W), {}, RuntimeError, r"input: expected 4 channels.*got 3 .*shape \(3, 3, 3, 2\)"),
    ((X[0, 0], W), {}, RuntimeError, r"input: expected 4 dimensions .*got shape \(5, 6\)"),
    ((X[None], W), {}, RuntimeError, "input: .*for example conv_transpose3d"),
    ((X, W[0]), {}, RuntimeError, r"weight: expected 4 dimensions .*got shape \(3, 3, 2\)"),
    ((X, W[:, :0]), {}, RuntimeError, r"weight: expected 4 dimensions .*of at least 1.*got shape \(4, 0, 3, 2\)"),
    ((X[:, :, :0], W), {}, RuntimeError, "input: expected an integer of at least 1, got 0"),
    ((X.numpy(), W), {}, TypeError, "input: expected a torch.Tensor, got ndarray"),
    ((X, W, 1), {}, TypeError, "bias: expected a torch.Tensor, got int"),
]


@pytest.mark.parametrize(("args", "terms", "kind", "message"), REFUSED)
def test_refusals_are_of_torchs_kind(args: Any, terms: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind):
        F.conv_transpose2d(*args, **terms)
    with pytest.raises(kind, match=message) as caught:
        functional.conv_transpose2d(*args, **terms)
    assert isinstance(caught.value, ArgumentError)


@pytest.mark.parametrize(
    ("terms", "kind", "message"),
    [
        ({"padding": "full"}, RuntimeError, "padding: expected 'same', 'valid', integers or pairs, got 'full'"),
        ({"padding": ((1, 2, 3), (0, 0))}, RuntimeError, r"padding: expected pairs \(before, after\)"),
        ({"padding": "same", "output_padding": 1, "stride": 2}, RuntimeError, "output_padding: expected 0 with"),
        ({"output_size": (3, 0)}, RuntimeError, "output_size: expected an integer of at least 1, got 0"),
        ({"output_size": 2.0}, TypeError, "output_size: expected an integer"),
    ],
)
def test_refusals_beyond_torch(terms: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        functional.conv_transpose2d(X, W, **terms)


def test_an_error_says_its_type() -> None:
    with pytest.raises(ArgumentTypeError):
        functional.conv_transpose1d(X[:, :, 0], W[:, :, 0], stride=[1.0])  # type: ignore[list-item]


def test_lists_are_as_good_as_tuples() -> None:
    x, w, b = tensors((1, 2, 3, 4), (2, 3, 3, 2))
    y = functional.conv_transpose2d(x, w, b, [2, 1], [[1, 0], [0, 1]], [0, 0], 1, [1, 2])  # type: ignore[list-item]
    assert torch.equal(y, functional.conv_transpose2d(x, w, b, (2, 1), ((1, 0), (0, 1)), 0, 1, (1, 2)))
