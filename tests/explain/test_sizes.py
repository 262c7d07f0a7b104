"""The filled-in formula is the formula."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from upscore.explain.sizes import sizes
from upscore.geometry import Geometry


@given(*[st.integers(1, 9)] * 4, st.integers(-5, 0), st.integers(-5, 0))
def test_the_filled_in_formula_can_be_worked_out(n, k, s, d, lo, hi) -> None:
    (found,) = sizes(Geometry(k, s, d, crop=((lo, hi),)), n)
    left, right = found.filled_in.split(" = ")
    assert eval(left) == int(right) == found.output == Geometry(k, s, d, ((lo, hi),)).output_size(n)[0]
    assert found.back == found.input == n


def test_each_axis_has_its_own() -> None:
    found = sizes(Geometry((64, 3), (32, 2), crop=((0, 0), (0, 1))), (16, 2))
    assert [s.filled_in for s in found] == [
        "(16 - 1)*32 + 1*(64 - 1) + 1 - 0 - 0 = 544",
        "(2 - 1)*2 + 1*(3 - 1) + 1 - 0 - 1 = 4",
    ]
