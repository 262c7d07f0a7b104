"""Why 64 and not 3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upscore.explain.kernel import kernel_choice, touched
from upscore.geometry import Geometry


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 6))
def test_touched_counts_the_phases_that_have_a_tap(k, s, d) -> None:
    assert touched(k, s, d) == sum(count > 0 for count in Geometry(k, s, d).overlap()[0])


def test_64_for_stride_32_and_3_for_comparison() -> None:
    rows, columns = kernel_choice(Geometry((64, 3), 32, crop=((16, 16), (0, 0))))
    assert (rows.touched, rows.smaller, rows.smaller_touches) == (32, 3, 3)
    assert (rows.bilinear, rows.bilinear_padding, rows.is_bilinear) == (64, 16, True)
    assert (columns.touched, columns.is_bilinear) == (3, False)
    assert not kernel_choice(Geometry(5, 3, dilation=2, crop=1))[0].is_bilinear
    assert not kernel_choice(Geometry(5, 3, crop=((1, 0),)))[0].is_bilinear


@pytest.mark.parametrize(("stride", "dilation", "smaller", "least"), [(1, 1, None, 1), (2, 1, 1, 2), (4, 2, 3, None)])
def test_small_strides_and_shared_factors(stride, dilation, smaller, least) -> None:
    (found,) = kernel_choice(Geometry(5, stride, dilation))
    assert (found.smaller, found.least) == (smaller, least)
