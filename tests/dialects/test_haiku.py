"""Haiku: drawn modules against ``haiku.Conv{1,2,3}DTranspose``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dialects.oracles import (
    Case,
    Worker,
    assert_same,
    check_code,
    check_reads_and_writes,
    draw_examples,
    integers,
    needs,
)
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, haiku
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

needs("jax", "haiku", "keras")


@st.composite
def modules(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    size = [draw(st.integers(2, 4)) for _ in range(rank)]
    c_in, c_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    front = draw(st.booleans())
    weights = {"w": integers(seed, *kernel, c_out, c_in)}
    parameters: dict[str, Any] = {
        "output_channels": c_out,
        "kernel_shape": kernel,
        "stride": stride,
        "with_bias": False,
    }
    if draw(st.booleans()):
        weights["b"] = integers(seed, c_out, *([1] * rank if front else []))
        parameters["with_bias"] = True
    if front:
        parameters["data_format"] = "channels_first"
    mode = draw(st.sampled_from(("default", "SAME", "VALID", "pairs")))
    if mode == "pairs":
        parameters["padding"] = [(k - 1 + draw(st.integers(-1, 1)), k - 1 + draw(st.integers(0, 1))) for k in kernel]
    elif mode != "default":
        parameters["padding"] = mode
    read = {}
    if mode in ("SAME", "VALID") and draw(st.booleans()):
        less = [draw(st.integers(0, s - 1)) for s in stride]
        most = [
            n * s if mode == "SAME" else (n - 1) * s + k + s - 1 for n, s, k in zip(size, stride, kernel, strict=True)
        ]
        parameters["output_shape"] = [m - a for m, a in zip(most, less, strict=True)]
        read["input_size"] = size
    return Case(parameters, weights, integers(seed, 2, c_in, *size), read)


def test_five_hundred_modules(worker: Callable[[str], Worker]) -> None:
    check_reads_and_writes("haiku", draw_examples(modules()), worker("jax").evaluate("haiku"))


def test_code_runs(worker: Callable[[str], Worker]) -> None:
    check_code("haiku", worker("jax"), 8)


def test_the_defaults_are_same_with_a_bias_and_no_flip(worker: Callable[[str], Worker]) -> None:
    """The axes are TensorFlow's, the taps are not: ``w`` copied from TensorFlow comes out mirrored."""
    case = Case(
        {"output_channels": 1, "kernel_shape": 3, "stride": 3},
        {"w": np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1), "b": np.zeros(1, np.float32)},
        np.ones((1, 1, 1, 1), np.float32),
    )
    (y,) = worker("jax").evaluate("haiku")([case])
    assert y.ravel().tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    layer = haiku.read(case.parameters, case.weights)
    assert layer.has_bias
    assert_same(y, layer, case.x, case)


def test_an_output_shape_out_of_reach() -> None:
    said = {"output_channels": 1, "kernel_shape": 3, "stride": 2, "output_shape": 12}
    with pytest.raises(ArgumentError, match=r"output_shape: expected a size that the SAME convolution takes back"):
        haiku.read(said, c_in=1, input_size=5)
    with pytest.raises(ArgumentError, match="input_size: expected the input's size, as output_shape depends on it"):
        haiku.read(said, c_in=1)
    with pytest.raises(ArgumentError, match="padding: expected 'SAME' or 'VALID' beside output_shape"):
        haiku.read({**said, "padding": [(1, 1), (1, 1)]}, c_in=1, input_size=5)


def test_dilation_is_refused() -> None:
    with pytest.raises(RefusalError, match=r"dilation: expected 1, got \(2, 1\); closest: .* kernel of \(5, 3\)"):
        haiku.write(Layer(Geometry(3, 2, (2, 1)), 1, 1))
