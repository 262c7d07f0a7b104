"""Letters and numbers of the small case, against the threads and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from upscore.errors import ArgumentError
from upscore.explain.definitions import definitions, fits
from upscore.geometry import Geometry


def test_the_letters_and_numbers_of_the_threads() -> None:
    found = definitions(Geometry((3, 3), 2), [[1, 2], [3, 4]])
    assert found.output == [[1, 1, 3, 2, 2], [1, 1, 3, 2, 2], [4, 4, 10, 6, 6], [3, 3, 7, 4, 4], [3, 3, 7, 4, 4]]
    row3 = ["a*w7+c*w1", "a*w8+c*w2", "a*w9+b*w7+c*w3+d*w1", "b*w8+d*w2", "b*w9+d*w3"]
    assert found.output_letters[2] == row3
    same = definitions(Geometry((3, 3), 2, crop=((0, 1), (0, 1))), [[1, 2], [3, 4]])
    assert same.output == [[1, 1, 3, 2], [1, 1, 3, 2], [4, 4, 10, 6], [3, 3, 7, 4]]
    assert same.output_letters[2] == row3[:-1]


@st.composite
def small_cases(draw):
    rank = draw(st.integers(1, 2))
    axis = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * rank))  # noqa: E731
    size, kernel, stride, dilation = axis(1, 3), axis(1, 4), axis(1, 3), axis(1, 2)
    full = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
    crop = []
    for span in full:
        lo = draw(st.integers(-1, span))
        crop.append((lo, draw(st.integers(-1, span - 1 - lo))))
    geometry = Geometry(kernel, stride, dilation, tuple(crop))
    assume(fits(geometry, size))
    return geometry, size


@given(small_cases())
def test_every_picture_says_the_same_as_the_numbers(case) -> None:
    """Letters are evaluated with random values: the result, the stamps, the matrix, the stuffed picture, the phases."""
    geometry, size = case
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal(size), rng.standard_normal(geometry.kernel)
    found = definitions(geometry, x, w)
    y = np.array(found.output)
    values = {chr(97 + i): v for i, v in enumerate(x.ravel())} | {f"w{i + 1}": v for i, v in enumerate(w.ravel())}

    def worked_out(letters) -> np.ndarray:
        return np.vectorize(lambda term: float(eval(term or "0", {}, values)), otypes=[float])(
            np.array(letters, object)
        )

    assert found.disagreement <= 1e-14
    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(worked_out(found.output_letters), y, **close)
    np.testing.assert_allclose(sum(map(worked_out, found.stamps)), y, **close)
    np.testing.assert_allclose(worked_out(found.matrix) @ x.ravel(), y.ravel(), **close)
    stuffed, flipped = worked_out(found.stuffed), worked_out(found.flipped)
    slid = np.lib.stride_tricks.sliding_window_view(stuffed, flipped.shape)
    axes = tuple(range(-geometry.rank, 0))
    np.testing.assert_allclose((slid * flipped).sum(axis=axes), y, **close)
    used = [set(np.array(kernel, object).ravel()) for kernel in found.phase_kernels]
    assert set.union(*used) == set(np.array(found.weight_letters, object).ravel())
    for number, term in zip(np.ravel(found.phase_outputs), np.array(found.output_letters, object).ravel(), strict=True):
        assert {factor for factor in term.replace("+", "*").split("*") if factor[0] == "w"} <= used[number - 1]


def test_what_is_small() -> None:
    assert fits(Geometry((3, 3), 2), (2, 2))
    assert not fits(Geometry((3, 3), 2), (4, 4))
    assert not fits(Geometry((3, 3, 3), 2), (2, 2, 2))
    assert not fits(Geometry((2, 2), 32), (2, 2))
    assert not fits(Geometry(2, 12), (2,))
    assert not fits(Geometry(2, dilation=12, crop=6), (1,))
    assert fits(Geometry((6, 4), 1), (2, 2))


@pytest.mark.parametrize(
    ("input", "weights", "message"),
    [
        (np.ones(2), None, "input: expected an array of 2 axes, got shape (2,); for example shape (2, 2)"),
        (
            np.ones((2, 2)),
            np.ones((3, 3)),
            "weights: expected shape (3, 2), got shape (3, 3); for example weights=None, for ones",
        ),
        (
            np.ones((4, 4)),
            None,
            "input: expected at most 9 inputs, 25 weights and 64 outputs on 1 or 2 axes, none longer than 12, "
            "got (4, 4) with kernel (3, 2); for example 2 x 2 with kernel 3",
        ),
    ],
)
def test_what_does_not_fit_is_named(input, weights, message) -> None:  # noqa: A002
    with pytest.raises(ArgumentError) as error:
        definitions(Geometry((3, 2), 2), input, weights)
    assert str(error.value) == message
