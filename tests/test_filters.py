"""The kernels people start from, against torch's interpolation, and the algebra of kernels against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from upscore import filters
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, bilinear_kernel
from upscore.reference import scatter

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@pytest.mark.parametrize("factor", [(2,), (5,), (2, 2), (2, 3), (3, 1), (4, 5), (1, 2, 3)])
def test_bilinear_is_torchs_interpolation_away_from_the_border(factor) -> None:
    """Caffe's and torch's differ at the border only: torch repeats the edge, the layer meets zeros."""
    rank, (kernel, padding) = len(factor), zip(*map(bilinear_kernel, factor), strict=True)
    x = picture(2, 3, *(4 + axis for axis in range(rank)))
    g = Geometry(kernel, factor, crop=tuple((p, p) for p in padding))
    y = scatter(x, filters.channelwise(filters.bilinear(factor), 3), geometry=g, groups=3)
    scale = tuple(map(float, factor))
    theirs = torch.nn.functional.interpolate(torch.from_numpy(x), scale_factor=scale, mode=MODES[rank]).numpy()
    assert y.shape == theirs.shape
    inner = (..., *(slice(f, -f) for f in factor))
    np.testing.assert_allclose(y[inner], theirs[inner], rtol=0, atol=1e-14)
    padded = np.pad(x, [(0, 0), (0, 0), *[(1, 1)] * rank], mode="edge")  # with the edge repeated, at the border too
    wide = scatter(padded, filters.channelwise(filters.bilinear(factor), 3), geometry=g, groups=3)
    np.testing.assert_allclose(wide[inner], theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("factor", [(3,), (2, 2), (2, 3), (1, 4), (3, 1, 2)])
def test_nearest_is_torchs_interpolation_exactly(factor) -> None:
    x = picture(2, 3, *(2 + axis for axis in range(len(factor))))
    g = Geometry(factor, factor)
    y = scatter(x, filters.channelwise(filters.nearest(factor), 3), geometry=g, groups=3)
    repeated = torch.nn.functional.interpolate(torch.from_numpy(x), scale_factor=tuple(map(float, factor)))
    np.testing.assert_array_equal(y, repeated.numpy())


def test_the_bilinear_kernels_of_the_threads() -> None:
    two = filters.bilinear(2)
    assert two.shape == (4, 4)
    assert sorted(set(two.ravel())) == [0.0625, 0.1875, 0.5625]
    assert (two[0, 0], two[0, 1], two[1, 1]) == (0.0625, 0.1875, 0.5625)
    np.testing.assert_array_equal(two, two.T)
    assert filters.bilinear(32).shape == (64, 64)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_the_taps_of_every_phase_sum_to_one(factor) -> None:
    """What makes flat areas stay flat."""
    w = filters.bilinear(tuple(factor))
    for phase in Geometry(w.shape, tuple(factor)).phases():
        assert w[np.ix_(*phase.taps)].sum() == pytest.approx(1, abs=1e-14)


def test_one_factor_speaks_for_all_axes() -> None:
    np.testing.assert_array_equal(filters.bilinear(3), filters.bilinear((3, 3)))
    np.testing.assert_array_equal(filters.bilinear(3, rank=1), filters.bilinear((3,)))
    assert filters.nearest(2, rank=3).shape == (2, 2, 2)


# Placing


@pytest.mark.parametrize("groups", [None, 1, 2, 3, 6])
def test_channelwise_upsamples_each_channel_alone(groups) -> None:
    kernel, x = picture(3, 2), picture(1, 6, 4, 5)
    w = filters.channelwise(kernel, 6, groups=groups)
    g = Geometry((3, 2), (2, 3))
    assert w.shape == (6, 6 // (groups or 6), 3, 2)
    y = scatter(x, w, geometry=g, groups=groups or 6)
    alone = scatter(x.reshape(6, 1, 4, 5), kernel[None, None], geometry=g).reshape(y.shape)
    np.testing.assert_allclose(y, alone, rtol=0, atol=1e-14)
    recovered = filters.diagonal(w, groups=groups or 6)
    np.testing.assert_array_equal(recovered, np.tile(kernel, (6, 1, 1, 1)))


def test_dense_sums_the_channels_of_each_group() -> None:
    kernel, x = picture(3, 2), picture(1, 4, 4, 5)
    g = Geometry((3, 2), (2, 3))
    y = scatter(x, filters.dense(kernel, 4, 6, groups=2), geometry=g, groups=2)
    sums = np.repeat(x.reshape(1, 2, 2, 4, 5).sum(axis=2), 3, axis=1)
    expected = scatter(sums, filters.channelwise(kernel, 6), geometry=g, groups=6)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


# Composing


def test_repeating_then_smoothing_is_one_larger_kernel() -> None:
    q = np.array([2.0, 3.0, 5.0])
    np.testing.assert_array_equal(filters.compose(filters.nearest(2, rank=1), q), [2, 5, 8, 5])


@st.composite
def pairs_of_layers(draw):
    rank = draw(st.integers(1, 2))
    kernels = st.tuples(*[st.integers(1, 4)] * rank)
    strides = st.tuples(*[st.integers(1, 3)] * rank)
    crops = st.tuples(*[st.tuples(st.integers(-2, 0), st.integers(-2, 0))] * rank)
    return draw(kernels), draw(strides), draw(crops), draw(kernels), draw(strides), draw(st.integers(1, 2))


@given(pairs_of_layers())
def test_two_layers_in_a_row_are_one(layers) -> None:
    k_a, s_a, crop_a, k_b, s_b, groups = layers
    a, b = picture(3, 2 * groups, *k_a), picture(2 * groups, 2, *k_b)
    x = picture(1, 3, *range(2, 2 + len(k_a)))
    between = scatter(x, a, geometry=Geometry(k_a, s_a, crop=crop_a))
    last = Geometry(k_b, s_b, crop=tuple((1, 0) for _ in k_b)) if min(k_b) > 1 else Geometry(k_b, s_b)
    expected = scatter(between, b, geometry=last, groups=groups)
    w = filters.compose_weights(a, b, stride=s_b, groups=groups)
    crop = [
        (lo * s + last_lo, hi * s + last_hi)
        for (lo, hi), (last_lo, last_hi), s in zip(crop_a, last.crop, s_b, strict=True)
    ]
    one = Geometry(w.shape[2:], tuple(p * q for p, q in zip(s_a, s_b, strict=True)), crop=tuple(crop))
    np.testing.assert_allclose(scatter(x, w, geometry=one), expected, rtol=0, atol=1e-12)


def test_compose_is_compose_weights_on_bare_kernels() -> None:
    a, b = picture(3, 2), picture(2, 4)
    expected = filters.compose_weights(a[None, None], b[None, None], stride=(2, 3))[0, 0]
    np.testing.assert_array_equal(filters.compose(a, b, stride=(2, 3)), expected)
    assert expected.shape == (2 * 2 + 1 + 1, 3 * 1 + 1 + 3)


def test_a_pixel_repeating_upsampler_and_a_convolution_are_one_layer() -> None:
    """The usual resize-convolution: torch upsamples, then slides a 3 x 3; the composed 4 x 4 stamps it, flipped."""
    x, slid = picture(2, 3, 4, 5), picture(6, 3, 3, 3)
    up = torch.nn.functional.interpolate(torch.from_numpy(x), scale_factor=2)
    expected = torch.nn.functional.conv2d(up, torch.from_numpy(slid), padding=1).numpy()
    stamped = np.flip(slid, axis=(2, 3)).swapaxes(0, 1)
    w = filters.compose_weights(filters.channelwise(filters.nearest(2), 3, groups=1), stamped)
    y = scatter(x, w, geometry=Geometry((4, 4), 2, crop=1))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


# Taking apart


@given(st.lists(arrays(np.float64, st.integers(1, 5), elements=st.floats(-100, 100, width=32)), min_size=1, max_size=3))
def test_an_outer_product_comes_apart_again(lines) -> None:
    kernel = filters._outer(lines)
    factors = filters.separable(kernel)
    assert factors is not None
    assert [len(f) for f in factors] == [len(line) for line in lines]
    np.testing.assert_allclose(filters._outer(factors), kernel, rtol=0, atol=1e-12 * np.abs(kernel).max())
    if kernel.any():
        assert all(np.abs(f).max() == pytest.approx(1) for f in factors[1:])


def test_a_weight_has_factors_per_channel_pair() -> None:
    rows, columns = picture(2, 3, 4), picture(2, 3, 5)
    w = rows[..., :, None] * columns[..., None, :]
    factors = filters.separable(w, leading=2)
    assert [f.shape for f in factors] == [(2, 3, 4), (2, 3, 5)]
    np.testing.assert_allclose(factors[0][..., :, None] * factors[1][..., None, :], w, rtol=0, atol=1e-14)
    w[1, 2, 0, 0] += 1e-6
    assert filters.separable(w, leading=2) is None
    assert filters.separable(w, leading=2, tolerance=1e-4) is not None


def test_what_does_not_come_apart() -> None:
    assert filters.separable(np.eye(3)) is None
    assert filters.separable([[1, np.nan], [1, 1]]) is None
    assert filters.separable(picture(3, 3, 3)) is None
    assert [f.tolist() for f in filters.separable(np.zeros((2, 3)))] == [[0, 0], [0, 0, 0]]
    assert filters.separable(filters.bilinear((4, 3))) is not None


def test_layers_that_mix_channels_are_not_diagonal() -> None:
    w = filters.channelwise(filters.bilinear((2, 3)), 4, groups=2)
    assert filters.diagonal(w, groups=2).shape == (4, 1, 4, 5)
    w[0, 1, 0, 0] = 1e-9
    assert filters.diagonal(w, groups=2) is None
    assert filters.diagonal(w, groups=2, tolerance=1e-6).shape == (4, 1, 4, 5)
    assert filters.diagonal(np.ones((4, 3, 2, 2))) is None
    assert filters.diagonal(filters.dense([1.0, 2.0], 3, 3)) is None


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: filters.bilinear(0), "factor: expected an integer of at least 1, got 0; for example factor=1"),
        (
            lambda: filters.nearest((2, -1)),
            "factor: expected an integer of at least 1, got -1; for example factor=1",
        ),
        (
            lambda: filters.channelwise([1.0], 6, groups=4),
            "groups: expected a divisor of the 6 channels, got 4; for example groups=1",
        ),
        (
            lambda: filters.dense([1.0], 4, 6, groups=4),
            "groups: expected a divisor of the 6 channels, got 4; for example groups=1",
        ),
        (
            lambda: filters.diagonal(np.ones((3, 1, 2)), groups=0),
            "groups: expected a divisor of the 3 channels, got 0; for example groups=1",
        ),
        (
            lambda: filters.compose([1.0], [[1.0]]),
            "b: expected a kernel of rank 1, like a, got shape (1, 1); for example shape (1,)",
        ),
        (
            lambda: filters.compose_weights(np.ones((2, 3, 4, 5)), np.ones((2, 1, 3, 3))),
            "b: expected a weight of 4 axes that reads the 3 channels a writes, got shape (2, 1, 3, 3); "
            "for example shape (3, 1, 4, 5)",
        ),
        (
            lambda: filters.compose_weights(np.ones((2, 3)), np.ones((3, 1))),
            "a: expected a weight (C_in, C_out, *K), got shape (2, 3); for example shape (1, 1, 2, 2)",
        ),
        (
            lambda: filters.compose(np.ones((2, 3)), np.ones((2, 3)), stride=(2, 2, 2)),
            "stride: expected one integer, or 2 of them (one per axis), got (2, 2, 2); for example stride=(1, 1)",
        ),
        (
            lambda: filters.separable(np.ones((2, 3)), leading=2),
            "leading: expected fewer than the 2 axes of w, got 2; for example leading=0",
        ),
    ],
)
def test_what_cannot_work_is_named(attempt, message) -> None:
    with pytest.raises(ArgumentError) as error:
        attempt()
    assert str(error.value) == message
