"""The phase formulas, evaluated as written, are the layer."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from upscore.explain.phases import phases
from upscore.geometry import Geometry
from upscore.reference import scatter


@given(*[st.integers(1, 6)] * 3, st.integers(1, 3), st.integers(-7, 7), st.integers(-4, 0))
def test_the_formulas_make_the_output(n, k, s, d, lo, hi) -> None:
    full = (n - 1) * s + d * (k - 1) + 1
    g = Geometry(k, s, d, crop=((min(lo, full - 1), hi),))
    rng = np.random.default_rng(0)
    inputs, w = rng.standard_normal(n), rng.standard_normal(k)
    x = defaultdict(float, enumerate(inputs))
    expected = scatter(inputs[None, None], w[None, None], geometry=g)[0, 0]
    y = np.full(len(expected), np.nan)
    for row in phases(g)[0]:
        left, right = re.sub(r"(\d)i", r"\1*i", row.formula).replace("0 (no tap)", "0").split(" = ")
        for i in range(len(expected)):
            at = eval(left[2:-1], {"i": i})
            if at < len(y):
                assert np.isnan(y[at])
                y[at] = eval(right, {"i": i, "x": x, "w": w})
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def test_which_of_the_16_weights_of_a_4x4_stride_2_make_a_pixel() -> None:
    rows, columns = phases(Geometry((4, 4), 2, crop=1))
    assert rows == columns
    assert [row.formula for row in rows] == ["y[2i+1] = x[i+1]*w[0] + x[i]*w[2]", "y[2i] = x[i]*w[1] + x[i-1]*w[3]"]


def test_a_phase_without_taps_says_so() -> None:
    assert [row.formula for row in phases(Geometry(1, 2))[0]] == ["y[2i] = x[i]*w[0]", "y[2i+1] = 0 (no tap)"]
