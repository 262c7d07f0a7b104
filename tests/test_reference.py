"""The four definitions against each other, against torch, and against their own adjoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upscore import reference
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

DEFINITIONS = (reference.scatter, reference.zero_stuffing, reference.matrix, reference.phases)
MORE = settings(max_examples=3 * settings.default.max_examples)  # quick cases: worth more than the profile's number


@dataclass(frozen=True)
class Case:
    """A layer and arrays that fit it."""

    geometry: Geometry
    groups: int
    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None

    def __call__(self, definition):
        return definition(self.x, self.w, self.bias, geometry=self.geometry, groups=self.groups)


@st.composite
def cases(draw, ranks=(1, 2, 3, 4), said_by_torch=False):  # torch refuses some empty batches, and any odd crop
    """Any rank, groups, dilation; crops of either sign and never the same twice by construction."""
    rank = draw(st.sampled_from(ranks))
    small = {1: 9, 2: 5, 3: 3, 4: 2}[rank]
    per_axis = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * rank))  # noqa: E731
    size, kernel, stride, dilation = (per_axis(1, small + extra) for extra in (1, 0, 0, 0))
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    full = [(n - 1) * s + e for n, s, e in zip(size, stride, extents, strict=True)]
    crop = []
    for span, s, d in zip(full, stride, dilation, strict=True):
        if said_by_torch:
            padding = draw(st.integers(0, (span - 1) // 2))
            crop.append((padding, padding - draw(st.integers(0, max(s, d) - 1))))
        else:
            low = draw(st.integers(-3, min(span + 2, 6)))
            crop.append((low, draw(st.integers(-4, min(span - 1 - low, 6)))))
    groups, a, b = (draw(st.integers(1, 3)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Case(
        Geometry(kernel, stride, dilation, tuple(crop)),
        groups,
        rng.standard_normal((draw(st.integers(1 if said_by_torch else 0, 2)), groups * a, *size)),
        rng.standard_normal((groups * a, b, *kernel)),
        rng.standard_normal(groups * b) if draw(st.booleans()) else None,
    )


def by_torch(case: Case) -> np.ndarray:
    g = case.geometry
    padding, output_padding = g.symmetric()
    function = getattr(torch.nn.functional, f"conv_transpose{g.rank}d")
    bias = None if case.bias is None else torch.from_numpy(case.bias)
    return function(
        torch.from_numpy(case.x),
        torch.from_numpy(case.w),
        bias,
        stride=g.stride,
        padding=padding,
        output_padding=output_padding,
        groups=case.groups,
        dilation=g.dilation,
    ).numpy()


def close(a: np.ndarray, b: np.ndarray, *, scale: float = 1.0) -> bool:
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= 1e-12 * max(1.0, scale)))


@given(cases())
@MORE
def test_the_four_definitions_agree(case: Case) -> None:
    first, *others = (case(definition) for definition in DEFINITIONS)
    assert first.shape == (len(case.x), case.groups * case.w.shape[1], *case.geometry.output_size(case.x.shape[2:]))
    assert all(close(first, other) for other in others)


@given(cases(ranks=(1, 2, 3), said_by_torch=True))
@MORE
def test_they_are_what_torch_computes(case: Case) -> None:
    assert close(case(reference.scatter), by_torch(case))


@given(cases(), st.data())
@MORE
def test_conv_is_the_adjoint(case: Case, data: st.DataObject) -> None:
    """``<conv(y), x> == <y, conv_transpose(x)>`` for every y, also where the size was reached by rounding down."""
    g = case.geometry
    m = [
        size + data.draw(st.integers(0, s - 1))
        for size, s in zip(g.output_size(case.x.shape[2:]), g.stride, strict=True)
    ]
    assert g.adjoint_size(m) == case.x.shape[2:]
    g = g.with_output_size(case.x.shape[2:], m)
    y = np.random.default_rng(0).standard_normal((len(case.x), case.groups * case.w.shape[1], *m))
    back = reference.conv(y, case.w, geometry=g, groups=case.groups)
    forth = reference.scatter(case.x, case.w, geometry=g, groups=case.groups)
    assert back.shape == case.x.shape
    assert np.vdot(back, case.x) == pytest.approx(np.vdot(y, forth), rel=1e-12, abs=1e-11)


@given(cases(ranks=(1, 2, 3), said_by_torch=True))
def test_gradients_are_those_of_autograd(case: Case) -> None:
    g = case.geometry
    padding, output_padding = g.symmetric()
    x, w, b = (torch.from_numpy(a).requires_grad_() for a in (case.x, case.w, np.zeros(case.groups * case.w.shape[1])))
    y = getattr(torch.nn.functional, f"conv_transpose{g.rank}d")(
        x, w, b, g.stride, padding, output_padding, case.groups, g.dilation
    )
    grad_y = torch.from_numpy(np.random.default_rng(1).standard_normal(y.shape))
    theirs = torch.autograd.grad(y, (x, w, b), grad_y)
    ours = reference.gradients(grad_y.numpy(), case.x, case.w, geometry=g, groups=case.groups)
    assert all(close(a, t.numpy(), scale=float(t.abs().max())) for a, t in zip(ours, theirs, strict=True))


@given(cases())
def test_gradients_of_asymmetric_layers_follow_from_linearity(case: Case) -> None:
    """y is linear in x and in w, so <grad, x> and <grad, w> both give <grad_y, y>."""
    y = reference.scatter(case.x, case.w, geometry=case.geometry, groups=case.groups)
    grad_y = np.random.default_rng(2).standard_normal(y.shape)
    grad_x, grad_w, grad_b = reference.gradients(grad_y, case.x, case.w, geometry=case.geometry, groups=case.groups)
    expected = pytest.approx(np.vdot(grad_y, y), rel=1e-12, abs=1e-11)
    assert (grad_x.shape, grad_w.shape, grad_b.shape) == (case.x.shape, case.w.shape, (y.shape[1],))
    assert np.vdot(grad_x, case.x) == expected
    assert np.vdot(grad_w, case.w) == expected
    assert close(grad_b, grad_y.sum(axis=tuple(a for a in range(y.ndim) if a != 1)))


@given(cases(ranks=(1, 2)))
def test_overlap_counts_what_scatter_stamps(case: Case) -> None:
    g, size = case.geometry, case.x.shape[2:]
    stamps = reference.scatter(np.ones((1, 1, *size)), np.ones((1, 1, *g.kernel)), geometry=g)[0, 0]
    counts = g.overlap(size)
    product = np.multiply.outer(*map(np.array, counts)) if g.rank == 2 else np.array(counts[0])
    np.testing.assert_array_equal(stamps, product)


@given(cases(ranks=(1, 2)))
def test_the_matrix_is_the_transpose_of_the_convolution(case: Case) -> None:
    """Read densely, C is the matrix of `conv` column by column, and C^T that of `scatter`."""
    g, size, outs = case.geometry, case.x.shape[2:], case.groups * case.w.shape[1]
    c = reference.convolution_matrix(case.w, size, geometry=g, groups=case.groups)
    dense = c.dense()
    units = np.eye(case.w.shape[0] * int(np.prod(size))).reshape(-1, case.w.shape[0], *size)
    rows = reference.scatter(units, case.w, geometry=g, groups=case.groups).reshape(len(units), -1)
    np.testing.assert_array_equal(dense, rows)
    assert c.shape == (len(units), outs * int(np.prod(g.output_size(size))))
    np.testing.assert_array_equal(c.T.dense(), dense.T)
    assert len(set(zip(c.rows.tolist(), c.columns.tolist(), strict=True))) == len(c.values)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_positions_no_tap_reaches_hold_the_bias(definition) -> None:
    g = Geometry(kernel=(2, 1), stride=(2, 3), crop=((-2, 0), (0, -1)))
    y = definition(np.ones((1, 2, 2, 2)), np.ones((2, 1, 2, 1)), [5.0, 7.0], geometry=g, groups=2)
    one = np.array([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], *[[1, 0, 0, 1, 0]] * 4])
    np.testing.assert_array_equal(y[0], np.stack([one + 5, one + 7]))


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_an_empty_batch_gives_an_empty_batch(definition) -> None:
    g = Geometry(kernel=(3, 2), stride=(2, 1))
    assert definition(np.ones((0, 2, 4, 5)), np.ones((2, 3, 3, 2)), geometry=g).shape == (0, 3, 9, 6)


# What the definitions say, seen at work.


def test_zero_stuffing_is_torchs_convolution_of_the_stuffed_image() -> None:
    x, w = np.arange(6.0).reshape(1, 1, 2, 3), np.arange(20.0).reshape(1, 1, 4, 5)
    stuffed = torch.zeros(1, 1, 3, 7, dtype=torch.float64)
    stuffed[..., ::2, ::3] = torch.from_numpy(x)
    flipped = torch.from_numpy(w).flip(2, 3)
    g = Geometry((4, 5), stride=(2, 3))
    expected = torch.nn.functional.conv2d(stuffed, flipped, padding=(3, 4)).numpy()
    np.testing.assert_array_equal(reference.zero_stuffing(x, w, geometry=g), expected)


# Numbers from the threads. The small example's letters are tested with the explainer.

ONES = {
    "full": (0, [[1, 1, 3, 2, 2], [1, 1, 3, 2, 2], [4, 4, 10, 6, 6], [3, 3, 7, 4, 4], [3, 3, 7, 4, 4]]),
    "SAME": (((0, 1), (0, 1)), [[1, 1, 3, 2], [1, 1, 3, 2], [4, 4, 10, 6], [3, 3, 7, 4]]),
}


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize(("crop", "expected"), ONES.values(), ids=ONES)
def test_three_by_three_ones_over_1_2_3_4(definition, crop, expected) -> None:
    g = Geometry((3, 3), stride=2, crop=crop)
    y = definition([[[[1, 2], [3, 4]]]], np.ones((1, 1, 3, 3)), geometry=g)
    np.testing.assert_array_equal(y[0, 0], expected)


def test_scores_of_16_upscored_to_544_have_two_by_two_inputs_under_each_output() -> None:
    """FCN-32s: between the borders each output adds 2 x 2 inputs, one tap of the 64 x 64 each."""
    g = Geometry((64, 64), stride=32)
    stamps = reference.scatter(np.ones((1, 1, 16, 16)), np.ones((1, 1, 64, 64)), geometry=g)[0, 0]
    assert stamps.shape == (544, 544)
    assert set(stamps[32:-32, 32:-32].ravel()) == {4.0}


def test_a_kernel_of_3_at_stride_32_touches_3_of_32_rows() -> None:
    y = reference.scatter(np.ones((1, 1, 16, 16)), np.ones((1, 1, 3, 3)), geometry=Geometry((3, 3), stride=32))[0, 0]
    touched = y.any(axis=1)
    assert y.shape == (483, 483)
    assert [bool(row) for row in touched[:32]] == [True] * 3 + [False] * 29
    assert int(touched.sum()) == 16 * 3


def test_a_5x5_convolved_by_3x3_stride_2_and_back() -> None:
    g, w = Geometry((3, 3), stride=2), np.random.default_rng(3).standard_normal((1, 1, 3, 3))
    small = reference.conv(np.ones((1, 1, 5, 5)), w, geometry=g)
    assert small.shape == (1, 1, 2, 2)
    assert reference.scatter(small, w, geometry=g).shape == (1, 1, 5, 5)


def test_3x7x7_with_one_3x3x3_filter_stride_2_and_back() -> None:
    """One filter over three channels: C_in (written by the convolution) is 1, C_out is 3."""
    g, w = Geometry((3, 3), stride=2), np.random.default_rng(4).standard_normal((1, 3, 3, 3))
    small = reference.conv(np.ones((1, 3, 7, 7)), w, geometry=g)
    assert small.shape == (1, 1, 3, 3)
    assert reference.scatter(small, w, geometry=g).shape == (1, 3, 7, 7)


# Errors.


@pytest.mark.parametrize(
    ("x", "w", "bias", "groups", "adjoint", "message"),
    [
        (
            (1, 2, 4),
            (2, 1, 3, 2),
            None,
            1,
            False,
            "x: expected 2 channels and 2 spatial axes, got shape (1, 2, 4); for example shape (1, 2, 8, 8)",
        ),
        (
            (1, 3, 4, 5),
            (2, 1, 3, 2),
            None,
            1,
            False,
            "x: expected 2 channels and 2 spatial axes, got shape (1, 3, 4, 5); for example shape (1, 2, 8, 8)",
        ),
        (
            (1, 2, 4, 5),
            (2, 1, 2, 3),
            None,
            1,
            False,
            "w: expected shape (C_in, C_out/groups, 3, 2), got shape (2, 1, 2, 3); for example shape (1, 1, 3, 2)",
        ),
        (
            (1, 2, 4, 5),
            (2, 1, 3, 2),
            None,
            0,
            False,
            "groups: expected a divisor of the 2 input channels, got 0; for example groups=1",
        ),
        (
            (1, 3, 4, 5),
            (3, 1, 3, 2),
            None,
            2,
            False,
            "groups: expected a divisor of the 3 input channels, got 2; for example groups=1",
        ),
        (
            (1, 2, 4, 5),
            (2, 1, 3, 2),
            (1,),
            2,
            False,
            "bias: expected shape (2,), got shape (1,); for example bias=None",
        ),
        (
            (1, 2, 9, 9),
            (2, 2, 3, 2),
            None,
            2,
            True,
            "y: expected 4 channels and 2 spatial axes, got shape (1, 2, 9, 9); for example shape (1, 4, 8, 8)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(x, w, bias, groups, adjoint, message) -> None:
    g = Geometry((3, 2), stride=2)
    bias = None if bias is None else np.ones(bias)
    for definition in (reference.conv,) if adjoint else DEFINITIONS:
        with pytest.raises(ArgumentError) as error:
            definition(np.ones(x), np.ones(w), bias, geometry=g, groups=groups)
        assert str(error.value) == message
