"""TensorFlow: drawn calls against ``tf.nn.conv{1,2,3}d_transpose``."""

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

from upscore.dialects import Layer, RefusalError, compare, pytorch, tensorflow
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

needs("tensorflow")


@st.composite
def calls(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    mode = draw(st.sampled_from(("SAME", "VALID", "EXPLICIT") if rank == 2 else ("SAME", "VALID")))
    axes = []
    for _ in range(rank):
        k, s, n = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
        d = draw(st.sampled_from((1,) * 15 + (2,)))
        e = d * (k - 1) + 1
        lo, hi = (draw(st.integers(0, e // 2)), draw(st.integers(0, e // 2))) if mode == "EXPLICIT" else (0, 0)
        most = n * s if mode == "SAME" else (n - 1) * s + e - lo - hi + s - 1
        axes.append((k, s, d, n, max(most - draw(st.integers(0, s - 1)), 1), (lo, hi)))
    kernel, stride, dilation, size, shape, pads = (list(v) for v in zip(*axes, strict=True))
    back = [
        -(-m // s) if mode == "SAME" else (m + lo + hi - (d * (k - 1) + 1)) // s + 1 for k, s, d, n, m, (lo, hi) in axes
    ]
    size = [max(b, 1) for b in back]
    c_in, c_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"filters": integers(seed, *kernel, c_out, c_in)}
    if draw(st.booleans()):
        weights["bias"] = integers(seed, c_out)
    front = rank == 2 and mode != "EXPLICIT" and set(dilation) == {1} and draw(st.booleans())
    around = (lambda v, one: [one, one, *v]) if front else (lambda v, one: [one, *v, one])
    parameters: dict[str, Any] = {
        "output_shape": [2, c_out, *shape] if front else [2, *shape, c_out],
        "strides": draw(st.sampled_from((stride, around(stride, 1)))),
        "padding": around([list(pair) for pair in pads], [0, 0]) if mode == "EXPLICIT" else mode,
    }
    if front:
        parameters["data_format"] = "NCHW"
    if set(dilation) != {1}:
        parameters["dilations"] = dilation
    return Case(parameters, weights, integers(seed, 2, c_in, *size), {"input_size": size})


def test_five_hundred_calls(worker: Callable[[str], Worker]) -> None:
    check_reads_and_writes("tensorflow", draw_examples(calls()), worker("tensorflow").evaluate("tensorflow"))


def test_code_runs_slices_pads_and_groups_included(worker: Callable[[str], Worker]) -> None:
    check_code("tensorflow", worker("tensorflow"), 20)


@pytest.mark.parametrize("size", [9, 10])
def test_same_where_the_stride_does_not_divide_the_size(worker: Callable[[str], Worker], size: int) -> None:
    """Five inputs at stride 2 make 9 or 10 outputs; the padding, and so the alignment, differs between the two."""
    said = {"output_shape": [1, size, size, 2], "strides": [1, 2, 2, 1], "padding": "SAME"}
    case = Case(said, {"filters": integers(0, 3, 3, 2, 1)}, integers(1, 1, 1, 5, 5))
    layer = tensorflow.read(said, case.weights, input_size=5)
    assert layer.geometry.crop == ((1, 1),) * 2 if size == 9 else ((0, 1),) * 2
    assert_same(worker("tensorflow").evaluate("tensorflow")([case])[0], layer, case.x, said)


def test_same_is_a_pixel_away_from_output_padding() -> None:
    same = tensorflow.read({"output_shape": [8, 8], "strides": 2, "filters_shape": [3, 3, 1, 1]}, input_size=4)
    torch = pytorch.read(
        {"in_channels": 1, "out_channels": 1, "kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
    )
    found = compare(torch, same)
    assert found.same_size
    assert found.shift == (1, 1)


def test_the_old_call_is_read_as_it_stands() -> None:
    old = {"output_shape": [7, 28, 14, 3], "strides": [1, 2, 1, 1], "padding": "SAME", "filters_shape": [5, 4, 3, 8]}
    assert tensorflow.read(old, input_size=(14, 14)).geometry == Geometry((5, 4), (2, 1), 1, ((1, 2), (1, 2)))


@pytest.mark.parametrize(
    ("parameters", "size", "message"),
    [
        ({"output_shape": [1, 13, 13, 1]}, 5, r"output_shape: expected a size that the SAME convolution takes back"),
        ({"output_shape": [1, 9, 9, 1], "strides": [2, 2, 2, 1]}, 5, "strides: expected 1 for batch and channels"),
        ({"output_shape": [1, 9, 9, 1], "padding": "same?"}, 5, "padding: expected 'SAME', 'VALID' or explicit"),
        ({"output_shape": [1, 9, 9, 1], "padding": [[0, 0], [-1, 0], [0, 0], [0, 0]]}, 5, "padding: expected 4 pairs"),
        ({"output_shape": [1, 9, 1], "filters_shape": [3, 1, 1], "padding": [[0, 0]] * 3}, 5, "exist in 2-D only"),
        ({}, 5, "output_shape: expected its shape"),
    ],
)
def test_what_tensorflow_does_not_take(parameters: dict[str, Any], size: int, message: str) -> None:
    said = {"strides": 2, "filters_shape": [3, 3, 1, 1], **parameters}
    with pytest.raises(ArgumentError, match=message):
        tensorflow.read(said, input_size=size)


def test_refusals_say_what_comes_closest() -> None:
    shape = Geometry(4, 2, 1, 1, rank=2)
    with pytest.raises(RefusalError, match="groups: expected 1, got 2; closest: 2 layers, one per group"):
        tensorflow.write(Layer(shape, 4, 2, 2))
    with pytest.raises(RefusalError, match="closest: padding='VALID' with everything kept, then"):
        tensorflow.write(Layer(Geometry(4, 2, 1, ((-1, 0), (0, 0))), 1, 1))
    with pytest.raises(RefusalError, match="rank: expected 1 or 2 or 3 spatial axes, got 4"):
        tensorflow.write(Layer(Geometry(4, 2, rank=4), 1, 1))


def test_the_smallest_input_stands_in_for_an_unknown_one() -> None:
    written = tensorflow.write(Layer(Geometry((3, 4), (2, 1), 1, ((2, 2), (1, 1))), 1, 1))
    assert written.input_size == (2, 1)
    assert written.parameters["output_shape"] == [1, 1, 2, 1]
    assert np.array_equal(written.parameters["filters_shape"], [3, 4, 1, 1])
