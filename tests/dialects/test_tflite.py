"""TensorFlow Lite: drawn TRANSPOSE_CONV operators, written as flatbuffers, against its interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dialects.oracles import Case, Worker, check_code, check_reads_and_writes, draw_examples, integers, needs
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, tflite
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

needs("tensorflow", "keras")


@st.composite
def operators(draw: st.DrawFn) -> Case:
    mode = draw(st.sampled_from(("SAME", "VALID")))
    kernel, stride, size, shape = [], [], [], []
    for _ in range(2):
        k, s, n = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
        most = n * s if mode == "SAME" else (n - 1) * s + k + s - 1
        kernel.append(k)
        stride.append(s)
        size.append(n)
        shape.append(most - draw(st.integers(0, s - 1)))
    c_in, c_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"weights": integers(seed, c_out, *kernel, c_in)}
    if draw(st.booleans()):
        weights["bias"] = integers(seed, c_out)
    parameters: dict[str, Any] = {
        "output_shape": [2, *shape, c_out],
        "padding": mode,
        "stride_h": stride[0],
        "stride_w": stride[1],
    }
    return Case(parameters, weights, integers(seed, 2, c_in, *size), {"input_size": size})


def test_five_hundred_operators(worker: Callable[[str], Worker]) -> None:
    check_reads_and_writes("tflite", draw_examples(operators()), worker("tensorflow").evaluate("tflite"))


def test_converted_code_runs_slices_and_pads_included(worker: Callable[[str], Worker]) -> None:
    check_code("tflite", worker("tensorflow"), 10)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"padding": "EXPLICIT"}, "padding: expected 'SAME' or 'VALID', got 'EXPLICIT'"),
        ({"output_shape": None}, "output_shape: expected the output's shape, got None"),
        ({"weights_shape": [3, 3]}, r"weights_shape: expected \(C_out, kh, kw, C_in\)"),
        ({"output_shape": [1, 13, 9, 1]}, "output_shape: expected a size that the SAME convolution takes back"),
    ],
)
def test_what_is_no_operator(parameters: dict[str, Any], message: str) -> None:
    said = {"output_shape": [1, 9, 9, 1], "stride_h": 2, "stride_w": 2, "weights_shape": [1, 3, 3, 1], **parameters}
    with pytest.raises(ArgumentError, match=message):
        tflite.read(said, input_size=5)


def test_explicit_padding_is_tensorflows_alone() -> None:
    with pytest.raises(RefusalError, match=r"TFLite cannot say this layer: padding: .* closest: padding='VALID'"):
        tflite.write(Layer(Geometry(3, 2, 1, ((1, 0), (1, 0))), 1, 1))
