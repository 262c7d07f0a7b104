"""The verdict against what a flat input really becomes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upscore import filters
from upscore.errors import ArgumentError
from upscore.explain.checkerboard import checkerboard, phase_gains
from upscore.geometry import Geometry
from upscore.reference import scatter


@given(*[st.tuples(st.integers(1, 5), st.integers(1, 4))] * 2, st.integers(1, 2))
def test_gains_are_what_a_flat_input_becomes(kernel, stride, dilation) -> None:
    g = Geometry(kernel, stride, dilation)
    w = np.random.default_rng(sum(kernel)).standard_normal((2, 3, *kernel))
    gains = phase_gains(g, w)
    assert gains.shape == (*stride, 2, 3)
    for c in range(2):  # one flat channel at a time, wide enough to have an interior
        flat = np.zeros((1, 2, 13, 13))
        flat[:, c] = 1
        y = scatter(flat, w, geometry=g)[0]
        for r in itertools.product(*map(range, stride)):
            at = tuple((n // 2) // s * s + p for n, s, p in zip(y.shape[1:], stride, r, strict=True))
            np.testing.assert_allclose(y[(slice(None), *at)], gains[r][c], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("geometry", "verdict"),
    [
        (Geometry((3, 3), 2), "unequal overlap"),
        (Geometry((4, 4), 2), "equal overlap"),
        (Geometry((4, 3), (2, 2)), "unequal overlap"),
        (Geometry((3, 64), 32), "holes"),
        (Geometry((4, 4), 2, dilation=2), "holes"),
        (Geometry((3, 3), 1), "equal overlap"),
    ],
)
def test_the_geometry_alone(geometry, verdict) -> None:
    found = checkerboard(geometry)
    assert (found.verdict, found.unevenness, found.gains) == (verdict, None, None)
    assert found.equal_overlap == (verdict == "equal overlap")


@pytest.mark.parametrize("factor", [(2, 2), (3, 2), (4, 5)])
def test_bilinear_and_nearest_leave_none(factor) -> None:
    for kernel in (filters.bilinear(factor), filters.nearest(factor)):
        found = checkerboard(Geometry(kernel.shape, factor), filters.dense(kernel, 2, 3))
        assert found.verdict == "even"
        assert found.unevenness == pytest.approx(0, abs=1e-15)
        assert found.gains == pytest.approx([6**0.5] * (factor[0] * factor[1]))


def test_channels_are_judged_one_by_one() -> None:
    """Pairs that do nothing, next to pairs that upsample; rounded to float32, as trained weights are."""
    w = filters.channelwise(filters.bilinear((3, 5)), 4, groups=2).astype(np.float32)
    found = checkerboard(Geometry((5, 9), (3, 5)), w)
    assert found.verdict == "even"
    assert 0 < found.unevenness < 1e-6


def test_ones_of_3_at_stride_2_leave_one_and_its_size_is_known() -> None:
    """Gains 4, 2, 2, 1: mean 9/4, so sqrt((7/4)^2 + 2*(1/4)^2 + (5/4)^2) of sqrt(25) alternates."""
    found = checkerboard(Geometry((3, 3), 2), np.ones((3, 3)))
    assert found.verdict == "visible"
    assert found.gains == (4, 2, 2, 1)
    assert found.unevenness == pytest.approx((49 / 16 + 2 / 16 + 25 / 16) ** 0.5 / 5)


def test_a_trained_layer_can_undo_an_unequal_overlap_and_spoil_an_equal_one() -> None:
    assert checkerboard(Geometry(3, 2), [0.5, 1, 0.5]).verdict == "even"
    spoiled = filters.bilinear((2,))
    spoiled[0] += 1e-3
    assert checkerboard(Geometry(4, 2), spoiled).verdict == "faint"
    spoiled[0] += 1
    assert checkerboard(Geometry(4, 2), spoiled).verdict == "visible"


def test_weights_do_not_fill_holes_and_zeros_have_no_pattern() -> None:
    found = checkerboard(Geometry((2, 4), (4096, 2)), np.ones((2, 4)))
    assert (found.verdict, found.gains, found.unevenness) == ("holes", None, None)
    assert checkerboard(Geometry(4, 2), np.zeros(4)).unevenness == 0


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (
            np.ones((2, 2, 3, 4)),
            "weights: expected a kernel (4, 3) or a weight (C_in, C_out/groups, *(4, 3)), got shape (2, 2, 3, 4); "
            "for example shape (1, 1, 4, 3)",
        ),
        (
            np.ones((0, 2, 4, 3)),
            "weights: expected a kernel (4, 3) or a weight (C_in, C_out/groups, *(4, 3)), got shape (0, 2, 4, 3); "
            "for example shape (1, 1, 4, 3)",
        ),
        (
            np.full((4, 3), np.nan),
            "weights: expected finite numbers, got nan or infinity; for example a checkpoint from before it diverged",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(w, message) -> None:
    with pytest.raises(ArgumentError) as error:
        checkerboard(Geometry((4, 3), 2), w)
    assert str(error.value) == message
