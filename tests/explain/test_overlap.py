"""Overlap away from the borders, and holes."""

from __future__ import annotations

import pytest

from upscore.explain.overlap import overlap
from upscore.geometry import Geometry


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "counts", "holes", "even"),
    [
        (64, 32, 1, (2,) * 32, 0, True),
        (3, 2, 1, (2, 1), 0, False),
        (3, 32, 1, (1, 1, 1) + (0,) * 29, 29, False),
        (4, 2, 2, (4, 0), 1, False),
        (5, 1, 3, (5,), 0, True),
    ],
)
def test_one_axis(kernel, stride, dilation, counts, holes, even) -> None:
    (found,) = overlap(Geometry(kernel, stride, dilation))
    assert (found.counts, found.holes, found.even) == (counts, holes, even)


def test_axes_are_kept_apart() -> None:
    rows, columns = overlap(Geometry((4, 3), (2, 3)))
    assert (rows.counts, columns.counts) == ((2, 2), (1, 1, 1))
    assert (rows.receptive_field, columns.receptive_field) == (2, 1)
