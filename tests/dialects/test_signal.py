"""The notation of signal processing, against scipy.signal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, assert_same, check_reads_and_writes, code_cases, draw_examples, integers
from hypothesis import strategies as st

from upscore.dialects import signal
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

scipy_signal = pytest.importorskip("scipy.signal", reason="SciPy is the oracle here")


@st.composite
def filters(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 1, 2, 3)))
    up = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
    taps = [draw(st.integers(1, 5 if rank == 1 else 3)) for _ in range(rank)]
    size = [draw(st.integers(3, 4)) for _ in range(rank)]
    seed = draw(st.integers(0, 2**32 - 1))
    parameters: dict[str, Any] = {"up": up, "dilation": dilation}
    kind = draw(st.sampled_from(("full", "same", "valid", "crop")))
    extent = [d * (t - 1) + 1 for t, d in zip(taps, dilation, strict=True)]
    long = [(n - 1) * s + 1 for n, s in zip(size, up, strict=True)]
    if kind == "valid" and any(a < e for a, e in zip(long, extent, strict=True)):
        kind = "same"
    if kind == "crop":
        parameters["crop"] = [(draw(st.integers(-1, e // 2)), draw(st.integers(-2, e // 2))) for e in extent]
    else:
        parameters["mode"] = kind
    channels = draw(st.sampled_from((None, (1, 1), (2, 3))))
    if channels is None:
        return Case(parameters, {"q": integers(seed, *taps)}, integers(seed, 1, 1, *size))
    weights = {"q": integers(seed, *channels, *taps), "offset": integers(seed, channels[1])}
    return Case(parameters, weights, integers(seed, 2, channels[0], *size))


def by_scipy(case: Case) -> np.ndarray:
    p, rank = case.parameters, case.x.ndim - 2
    q = case.weights["q"]
    q = q[None, None] if q.ndim == rank else q
    every = tuple(slice(None, None, s) for s in p["up"])
    long = np.zeros((*case.x.shape[:2], *[(n - 1) * s + 1 for n, s in zip(case.x.shape[2:], p["up"], strict=True)]))
    long[(..., *every)] = case.x
    wide = np.zeros((*q.shape[:2], *[(t - 1) * d + 1 for t, d in zip(q.shape[2:], p["dilation"], strict=True)]))
    wide[(..., *(slice(None, None, d) for d in p["dilation"]))] = q
    mode = p.get("mode", "full")
    y = np.array(
        [
            [
                sum(scipy_signal.convolve(image[i], wide[i, o], mode=mode, method="direct") for i in range(q.shape[0]))
                for o in range(q.shape[1])
            ]
            for image in long
        ]
    )
    if "crop" in p:
        y = np.pad(y, [(0, 0), (0, 0), *[(max(-lo, 0), max(-hi, 0)) for lo, hi in p["crop"]]])
        kept = [slice(max(lo, 0), n - max(hi, 0)) for (lo, hi), n in zip(p["crop"], y.shape[2:], strict=True)]
        y = y[(..., *kept)]
    if "offset" in case.weights:
        y = y + case.weights["offset"].reshape(1, -1, *[1] * rank)
    return y


def test_five_hundred_filters() -> None:
    check_reads_and_writes("signal", draw_examples(filters()), lambda cases: [by_scipy(case) for case in cases])


def test_code_runs() -> None:
    for layer, x, text in code_cases("signal", 40):
        assert_same(signal.run(layer, x), layer, x, text)


@pytest.mark.parametrize(("up", "taps", "size"), [(1, 3, 4), (2, 4, 3), (3, 2, 4), (3, 5, 5)])
def test_upfirdn_is_the_full_transposed_convolution(up: int, taps: int, size: int) -> None:
    q, x = integers(0, taps), integers(1, size)
    layer = signal.read({"up": up}, {"q": q})
    assert_same(scipy_signal.upfirdn(q, x, up=up)[None, None], layer, x[None, None], up)


@pytest.mark.parametrize(
    ("s", "d", "taps", "size", "crop"), [(2, 1, 3, 4, (0, 0)), (3, 2, 2, 3, (1, 0)), (2, 3, 4, 3, (-1, 2))]
)
def test_the_matrices(s: int, d: int, taps: int, size: int, crop: tuple[int, int]) -> None:
    q, x = integers(0, taps), integers(1, size)
    found = signal.matrices(q, size, up=s, dilation=d, crop=crop)
    wide = np.zeros(d * (taps - 1) + 1)
    wide[::d] = q
    full = scipy_signal.upfirdn(wide, x, up=s)
    assert np.array_equal(found["filter"] @ found["up"] @ x, full)
    layer = signal.read({"up": s, "dilation": d, "crop": (crop,)}, {"q": q})
    assert_same((found["whole"] @ x)[None, None], layer, x[None, None], crop)
    assert np.array_equal(found["whole"], found["cut"] @ found["filter"] @ found["up"])
    # the transpose: correlate with q, then keep every s-th
    (m,) = layer.output_size(size)
    y = integers(2, m)
    back = np.zeros(m + max(crop[0], 0) + max(crop[1], 0))
    back[max(crop[0], 0) :][:m] = y
    back = back[max(-crop[0], 0) : len(back) - max(-crop[1], 0)]
    assert np.array_equal(found["whole"].T @ y, scipy_signal.correlate(back, wide, mode="valid")[::s])


def test_the_matrices_are_printed() -> None:
    text = signal.show_matrices(np.array([1, 2, 3]), 2, up=2)
    assert text.startswith("q * (up_2 x) =\n  [ 1 . ]\n  [ 2 . ]\n  [ 3 1 ]\n  [ . 2 ]\n  [ . 3 ]")
    assert "its transpose, down_2 (q~ * y) =\n  [ 1 2 3 . . ]\n  [ . . 1 2 3 ]" in text
    assert "(up_3 q) * y" in signal.show_matrices(np.array([1, 2]), 2, dilation=3)


def test_what_the_notation_does_not_take() -> None:
    with pytest.raises(ArgumentError, match="mode: expected 'full', 'same' or 'valid', got 'half'"):
        signal.read({"mode": "half", "taps": 3, "channels": 1}, c_in=1)
    with pytest.raises(ArgumentError, match="mode: expected none beside crop, got full"):
        signal.read({"mode": "full", "crop": ((0, 1),), "taps": 3, "channels": 1}, c_in=1)
    with pytest.raises(ArgumentError, match="taps: expected how many, where no q is given"):
        signal.read({"up": 2})


def test_modes_are_crops() -> None:
    crops = {m: signal.read({"mode": m, "taps": 4, "channels": 1}, c_in=1).geometry for m in ("full", "same", "valid")}
    assert crops["full"] == Geometry(4)
    assert crops["same"].crop == ((1, 2),)
    assert crops["valid"].crop == ((3, 3),)
