"""The coordinate map in symbols."""

from __future__ import annotations

from fractions import Fraction

import pytest

from upscore.explain.coordinates import coordinates
from upscore.geometry import Geometry


@pytest.mark.parametrize(
    ("geometry", "formula", "aligned"),
    [
        (Geometry(4, 2, crop=1), "x = 1/2*y - 1/4", True),
        (Geometry(5, 3, crop=1), "x = 1/3*y - 1/3", True),
        (Geometry(64, 32), "x = 1/32*y - 63/64", False),
        (Geometry(3, 1, crop=1), "x = y", True),
        (Geometry(2, 1, crop=((1, 0),)), "x = y + 1/2", False),
    ],
)
def test_formula(geometry, formula, aligned) -> None:
    (found,) = coordinates(geometry)
    assert (found.formula, found.aligned) == (formula, aligned)


def test_axes_are_kept_apart() -> None:
    rows, columns = coordinates(Geometry((4, 3), (2, 1), crop=((1, 1), (0, 2))))
    assert (rows.scale, rows.offset) == (Fraction(1, 2), Fraction(-1, 4))
    assert (columns.scale, columns.offset) == (1, -1)
