"""The NumPy surface against torch in float64, its own adjoint, and numbers that people worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import upscore as up
from upscore import filters, reference

FORWARD = [None, *(getattr(torch.nn.functional, f"conv_transpose{rank}d") for rank in (1, 2, 3))]
TOLERANCE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}


@pytest.fixture(autouse=True, scope="module")
def _one_thread_for_torch():
    """Its threads spin between thousands of tiny calls, and on a busy machine that takes minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer as its caller says it, and float32 arrays of numbers in [0.5, 1.5).

    Nothing cancels, so that a relative error says something about outputs of one element too.
    """

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    options: dict
    output_size: tuple[int, ...] | None

    @property
    def geometry(self) -> up.Geometry:
        g = up.Geometry.from_padding(self.w.shape[2:], **{k: v for k, v in self.options.items() if k != "groups"})
        return g if self.output_size is None else g.with_output_size(self.x.shape[2:], self.output_size)


@st.composite
def cases(draw, rank, gradient=True):
    """Groups, dilation, crops that differ before and after, output sizes that cut and that add."""
    axes = st.tuples(*[st.integers(0, 2**16)] * rank)
    pick = lambda low, high: tuple(low + v % (high - low + 1) for v in draw(axes))  # noqa: E731
    longest = {1: 40, 2: 14, 3: 6, 4: 4, 5: 3}[rank]
    n, kernel, stride = pick(1, longest), pick(1, {1: 9, 2: 6, 3: 4}.get(rank, 3)), pick(1, 5 if rank < 4 else 3)
    dilation = pick(1, 3)
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    full = [(i - 1) * s + e for i, s, e in zip(n, stride, extent, strict=True)]
    before = [v % min(m, 5) for v, m in zip(draw(axes), full, strict=True)]
    after = [v % min(m - lo, 5) for v, m, lo in zip(draw(axes), full, before, strict=True)]
    options = {
        "stride": stride,
        "padding": tuple(zip(before, after, strict=True)),
        "output_padding": tuple(v % max(s, d) for v, s, d in zip(draw(axes), stride, dilation, strict=True)),
        "dilation": dilation,
        "groups": draw(st.integers(1, 3)),
    }
    output_size = None
    if draw(st.integers(0, 3)) == 0:
        output_size = tuple(1 + v % (m - lo + 3) for v, m, lo in zip(draw(axes), full, before, strict=True))
    ci, co = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = lambda *shape: rng.uniform(0.5, 1.5, shape).astype(np.float32)  # noqa: E731
    return Case(
        numbers(draw(st.integers(1, 3)), ci * options["groups"], *n),
        numbers(ci * options["groups"], co, *kernel),
        numbers(co * options["groups"]) if draw(st.booleans()) else None,
        options,
        output_size,
    )


def relative_error(ours, theirs) -> float:
    """In the 2-norm, against float64."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), np.finfo(np.float64).tiny))


def by_torch(case: Case):
    """torch's full output in float64, cut and filled as the crop says; and its leaves."""
    leaves = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (case.x, case.w)]
    g, channels = case.geometry, case.w.shape[1] * case.options["groups"]
    bias = torch.tensor(np.zeros(channels) if case.bias is None else case.bias, dtype=torch.float64, requires_grad=True)
    full = FORWARD[g.rank](*leaves, None, g.stride, groups=case.options["groups"], dilation=g.dilation)
    cut = [-c for pair in reversed(g.crop) for c in pair]
    return torch.nn.functional.pad(full, cut) + bias.reshape(-1, *[1] * g.rank), [*leaves, bias]


def check_against_torch(case: Case) -> None:
    theirs, leaves = by_torch(case)
    grad_y = np.random.default_rng(1).uniform(0.5, 1.5, theirs.shape).astype(np.float32)
    theirs.backward(torch.tensor(grad_y, dtype=torch.float64))
    for dtype, tolerance in TOLERANCE.items():
        x, w, g = (a.astype(dtype) for a in (case.x, case.w, grad_y))
        bias = None if case.bias is None else case.bias.astype(dtype)
        options = {**case.options, "output_size": case.output_size}
        y = up.conv_transpose(x, w, bias, **options)
        assert y.dtype == dtype
        assert relative_error(y, theirs.detach()) <= tolerance
        layer = up.plan(w, bias, **case.options)
        np.testing.assert_array_equal(layer(x, output_size=case.output_size), y)
        for ours, leaf in zip(up.conv_transpose_backward(g, x, w, **options), leaves, strict=True):
            assert ours.dtype == dtype
            assert relative_error(ours, leaf.grad) <= tolerance


# 2,500 cases in all under the default profile.
@settings(max_examples=10 * settings.default.max_examples)
@given(cases(1))
def test_one_axis_against_torch(case):
    check_against_torch(case)


@settings(max_examples=10 * settings.default.max_examples)
@given(cases(2))
def test_two_axes_against_torch(case):
    check_against_torch(case)


@settings(max_examples=5 * settings.default.max_examples)
@given(cases(3))
def test_three_axes_against_torch(case):
    check_against_torch(case)


@given(st.sampled_from([4, 5]).flatmap(cases))
def test_more_axes_against_the_definition(case):
    y = reference.scatter(case.x, case.w, case.bias, geometry=case.geometry, groups=case.options["groups"])
    grad_y = np.random.default_rng(1).uniform(0.5, 1.5, y.shape).astype(np.float32)
    grads = reference.gradients(grad_y, case.x, case.w, geometry=case.geometry, groups=case.options["groups"])
    options = {**case.options, "output_size": case.output_size}
    for dtype, tolerance in TOLERANCE.items():
        x, w, g = (a.astype(dtype) for a in (case.x, case.w, grad_y))
        bias = None if case.bias is None else case.bias.astype(dtype)
        assert relative_error(up.conv_transpose(x, w, bias, **options), y) <= tolerance
        for ours, theirs in zip(up.conv_transpose_backward(g, x, w, **options), grads, strict=True):
            assert relative_error(ours, theirs) <= tolerance


@settings(max_examples=2 * settings.default.max_examples)
@given(st.integers(1, 3).flatmap(cases))
def test_conv_against_torch(case):
    """With the same weights, from the other side; torch gets the padding by hand."""
    g, groups = case.geometry, case.options["groups"]
    y = np.random.default_rng(2).uniform(0.5, 1.5, (2, case.w.shape[1] * groups, *g.output_size(case.x.shape[2:])))
    y = y.astype(np.float32)
    options = {k: case.options[k] for k in ("stride", "padding", "dilation", "groups")}
    before_after = [p for pair in reversed(options["padding"]) for p in pair]
    padded = torch.nn.functional.pad(torch.tensor(y, dtype=torch.float64), before_after)
    bias = np.linspace(0.5, 1.5, len(case.w)).astype(np.float32)
    if any(n < e for n, e in zip(padded.shape[2:], g.extent, strict=True)):
        with pytest.raises(up.ArgumentError, match="x: expected a padded size of at least the kernel's extent"):
            up.conv(y, case.w, bias, **options)
        return
    theirs = getattr(torch.nn.functional, f"conv{g.rank}d")(
        padded,
        torch.tensor(case.w, dtype=torch.float64),
        torch.tensor(bias, dtype=torch.float64),
        stride=g.stride,
        dilation=g.dilation,
        groups=groups,
    )
    for dtype, tolerance in TOLERANCE.items():
        ours = up.conv(y.astype(dtype), case.w.astype(dtype), bias.astype(dtype), **options)
        assert relative_error(ours, theirs) <= tolerance


@settings(max_examples=2 * settings.default.max_examples)
@given(st.integers(1, 5).flatmap(cases))
def test_conv_is_the_adjoint(case):
    """<conv(y), x> == <y, conv_transpose(x)>, for numbers of both signs."""
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal(case.x.shape), rng.standard_normal(case.w.shape)
    options = {k: case.options[k] for k in ("stride", "padding", "dilation", "groups")}
    there = up.conv_transpose(x, w, **options)
    y = rng.standard_normal(there.shape)
    back = up.conv(y, w, **options)
    assert back.shape == x.shape
    bound = np.vdot(np.abs(y), up.conv_transpose(np.abs(x), np.abs(w), **options))  # what cancels, not cancelled
    assert abs(np.vdot(back, x) - np.vdot(y, there)) <= 1e-14 * bound


@pytest.mark.parametrize("output_size", [None, (1, 1), (4, 9), (30, 2), (31, 40)])
def test_any_output_size_cuts_or_adds_at_the_end(output_size):
    rng = np.random.default_rng(5)
    x, w, bias = rng.random((2, 4, 5, 3)), rng.random((4, 3, 4, 2)), rng.random(6)
    options = {"stride": (3, 2), "padding": ((1, 0), (0, 1)), "groups": 2}
    y = up.conv_transpose(x, w, bias, **options, output_size=output_size)
    full = up.conv_transpose(x, w, bias, stride=(3, 2), padding=((1, 0), (0, 0)), groups=2)
    expected = np.broadcast_to(bias.reshape(1, 6, 1, 1), (2, 6, *y.shape[2:])).copy()
    rows, columns = (min(a, b) for a, b in zip(y.shape[2:], full.shape[2:], strict=True))
    expected[:, :, :rows, :columns] = full[:, :, :rows, :columns]
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    assert y.shape[2:] == (output_size or (15, 5))


def test_score_maps_of_fcn_32s():
    """16 x 16 scores, kernel 64, stride 32: 544 x 544, and 2 x 2 inputs under each output away from the borders."""
    x, w = np.ones((1, 1, 16, 16), np.float32), np.ones((1, 1, 64, 64), np.float32)
    y = up.conv_transpose(x, w, stride=32)
    assert y.shape == (1, 1, 544, 544)
    assert np.all(y[0, 0, 32:-32, 32:-32] == 4)
    assert np.all(y[0, 0, :32, :32] == 1)
    touched = up.conv_transpose(x, np.ones((1, 1, 3, 3), np.float32), stride=32)[0, 0].any(axis=1)
    assert touched[:32].sum() == 3


STAMPED = [[1, 1, 3, 2, 2], [1, 1, 3, 2, 2], [4, 4, 10, 6, 6], [3, 3, 7, 4, 4], [3, 3, 7, 4, 4]]


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 5), ({"padding": ((0, 1), (0, 1))}, 4), ({"output_size": 4}, 4), ({"output_size": (4, 3)}, 4)],
)
def test_two_by_two_stamped_with_ones(options, rows):
    x = np.array([[[[1, 2], [3, 4]]]], np.float32)
    y = up.conv_transpose(x, np.ones((1, 1, 3, 3), np.float32), stride=2, **options)[0, 0]
    assert y.tolist() == [row[: y.shape[1]] for row in STAMPED[:rows]]


def test_third_row_in_letters():
    a, b, c, d = 2.0, 3.0, 5.0, 7.0
    w1, w2, w3, w4, w5, w6, w7, w8, w9 = (11.0, 13.0, 17.0, 19.0, 23.0, 29.0, 31.0, 37.0, 41.0)
    x = np.array([[[[a, b], [c, d]]]])
    w = np.array([[[[w1, w2, w3], [w4, w5, w6], [w7, w8, w9]]]])
    row = up.conv_transpose(x, w, stride=2)[0, 0, 2].tolist()
    assert row == [
        a * w7 + c * w1,
        a * w8 + c * w2,
        a * w9 + b * w7 + c * w3 + d * w1,
        b * w8 + d * w2,
        b * w9 + d * w3,
    ]


@pytest.mark.parametrize("factor", [2, 3, 4, 32])
def test_bilinear_keeps_a_plane_and_constants(factor):
    """The used weights of every phase sum to 1, and a plane stays a plane away from the borders."""
    w = np.asarray(filters.bilinear(factor), np.float64)[None, None]
    k, pad = up.geometry.bilinear_kernel(factor)
    assert w.shape == (1, 1, k, k)
    i, j = np.mgrid[:6, :7].astype(np.float64)
    y = up.conv_transpose(
        (2 * i + 3 * j)[None, None], w, stride=factor, padding=pad, output_size=(6 * factor, 7 * factor)
    )
    r, c = np.mgrid[: 6 * factor, : 7 * factor]
    centre = pad - (k - 1) / 2
    plane = 2 * (r + centre) / factor + 3 * (c + centre) / factor
    inside = slice(factor, -2 * factor)
    np.testing.assert_allclose(y[0, 0, inside, inside], plane[inside, inside], rtol=1e-13)


def test_bilinear_by_two_in_numbers():
    y = up.conv_transpose(np.ones((1, 1, 1, 1)), np.asarray(filters.bilinear(2), np.float64)[None, None], stride=2)
    assert sorted({float(v) for v in y.ravel()}) == [0.0625, 0.1875, 0.5625]
    assert y.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "small"),
    [
        ((5, 5), 1, 3, 2, (2, 2)),
        ((7, 7), 3, 3, 2, (3, 3)),
        ((227, 227), 1, 11, 4, (55, 55)),
        ((9, 14), 2, (2, 5), (3, 2), (3, 5)),
    ],
)
def test_there_and_back_again(size, channels, kernel, stride, small):
    rank = len(size)
    kernel = (kernel,) * rank if isinstance(kernel, int) else kernel
    w = np.ones((1, channels, *kernel), np.float32)
    y = up.conv(np.ones((1, channels, *size), np.float32), w, stride=stride)
    assert y.shape == (1, 1, *small)
    assert np.all(y == channels * math.prod(kernel))
    assert up.conv_transpose(y, w, stride=stride, output_size=size).shape == (1, channels, *size)


def test_a_plan_is_called_with_any_batch_and_size():
    rng = np.random.default_rng(6)
    w, bias = rng.random((4, 3, 4, 2)), rng.random(3)
    layer = up.plan(w, bias, stride=(2, 3), padding=((1, 0), (0, 1)))
    assert "not run yet" in layer.why
    for shape in [(1, 4, 5, 6), (3, 4, 1, 9), (0, 4, 2, 2), (1, 4, 5, 6)]:
        x = rng.random(shape)
        y = layer(x)
        np.testing.assert_array_equal(y, up.conv_transpose(x, w, bias, stride=(2, 3), padding=((1, 0), (0, 1))))
        assert y.shape[0] == shape[0]
    assert up.cpu.active() in layer.why
    assert repr(layer) == (
        "Plan(4 -> 3, kernel=(4, 2), stride=(2, 3), dilation=(1, 1), crop=((1, 0), (0, 1)), groups=1, float64)"
    )


def test_a_plan_keeps_the_weights_it_was_given():
    w = np.ones((1, 1, 3, 3), np.float32)
    layer = up.plan(w, stride=2)
    x = np.ones((1, 1, 4, 4), np.float32)
    before = layer(x)
    w[:] = 7
    np.testing.assert_array_equal(layer(x), before)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("mask", [(True, False, False), (False, True, False), [False, False, True], (False,) * 3])
def test_only_the_gradients_that_are_asked_for(rank, mask):
    rng = np.random.default_rng(rank)
    x, w = rng.random((2, 3, *(3,) * rank), np.float32), rng.random((3, 2, *(2,) * rank), np.float32)
    grad_y = rng.random((2, 2, *(6,) * rank), np.float32)
    every = up.conv_transpose_backward(grad_y, x, w, stride=2)
    for wanted, one, of_all in zip(
        mask, up.conv_transpose_backward(grad_y, x, w, stride=2, output_mask=mask), every, strict=True
    ):
        if wanted:
            np.testing.assert_array_equal(one, of_all)
        else:
            assert one is None
