"""OpenVINO: drawn operations against its CPU plugin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, assert_same, check_reads_and_writes, code_cases, draw_examples, integers, needs
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, compare, onnx, openvino
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

needs("openvino")
BATCH = 40


@st.composite
def operations(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(2, 4)) for _ in range(rank)]
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    i, o = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"weights": integers(seed, *([groups] if groups > 1 else []), i, o, *kernel)}
    if draw(st.booleans()):
        weights["bias"] = integers(seed, groups * o)
    begin = [draw(st.integers(0, e // 2)) for e in extent]
    end = [draw(st.integers(0, (e - 1) // 2)) for e in extent]
    parameters: dict[str, Any] = {
        "strides": stride,
        "dilations": dilation,
        "pads_begin": begin,
        "pads_end": end,
        "output_padding": [draw(st.integers(0, s - 1)) for s in stride],
        "auto_pad": draw(st.sampled_from(("explicit", "explicit", "valid"))),
    }
    if groups > 1:
        parameters["groups"] = groups
    if draw(st.booleans()):
        full = [(n - 1) * s + e for n, s, e in zip(size, stride, extent, strict=True)]
        parameters["auto_pad"] = draw(st.sampled_from(("same_upper", "same_lower", "explicit")))
        parameters["output_shape"] = [f - draw(st.integers(0, e // 2)) for f, e in zip(full, extent, strict=True)]
        if parameters["auto_pad"] == "explicit":
            parameters["output_shape"] = [max(m - b, 1) for m, b in zip(parameters["output_shape"], begin, strict=True)]
    return Case(parameters, weights, integers(seed, 2, groups * i, *size), {"input_size": size})


def evaluate(cases: list[Case]) -> list[Any]:
    """Many layers as one model: compiling takes most of the time."""
    import openvino as ov
    from openvino import opset13 as ops

    outputs: list[Any] = []
    core = ov.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    for start in range(0, len(cases), BATCH):
        inputs, results = [], []
        part = cases[start : start + BATCH]
        for case in part:
            p = dict(case.parameters)
            grouped = p.pop("groups", 1) > 1
            rank = case.x.ndim - 2
            if "output_shape" in p:
                p["output_shape"] = ops.constant(np.array(p["output_shape"], np.int64))
            data = ops.parameter(case.x.shape, ov.Type.f32)
            function = ops.group_convolution_backprop_data if grouped else ops.convolution_backprop_data
            node = function(data, ops.constant(case.weights["weights"]), **p)
            if "bias" in case.weights:
                node = ops.add(node, ops.constant(case.weights["bias"].reshape(1, -1, *[1] * rank)))
            inputs.append(data)
            results.append(node)
        model = core.compile_model(ov.Model(results, inputs), "CPU", config)
        answer = model([case.x for case in part])
        outputs += [np.array(answer[i]) for i in range(len(part))]
    return outputs


def test_five_hundred_operations() -> None:
    check_reads_and_writes("openvino", draw_examples(operations()), evaluate)


def test_code_runs() -> None:
    for layer, x, text in code_cases("openvino", 15):
        assert_same(openvino.run(layer, x), layer, x, text)


def test_same_upper_is_onnxs_same_lower() -> None:
    """The larger half is cut before with same_upper: a model converted by name comes out a pixel away."""
    said = {"strides": [1, 2], "kernel": [1, 3], "filters": 1, "auto_pad": "same_upper", "output_shape": [3, 6]}
    upper = openvino.read(said, c_in=1, input_size=3)
    theirs = {"strides": [1, 2], "kernel_shape": [1, 3], "filters": 1, "auto_pad": "SAME_UPPER"}
    assert compare(onnx.read(theirs, c_in=1), upper).shift == (0, -1)
    x, w = integers(0, 1, 1, 3, 3), integers(1, 1, 1, 1, 3)
    parameters = {"strides": [1, 2], "pads_begin": [0, 0], "pads_end": [0, 0], "dilations": [1, 1]}
    parameters |= {"auto_pad": "same_upper", "output_shape": [3, 6]}
    assert_same(evaluate([Case(parameters, {"weights": w}, x)])[0], upper.with_weights(w), x, parameters)


def test_same_without_an_output_shape_cuts_nothing() -> None:
    x, w = integers(0, 1, 1, 3, 3), integers(1, 1, 1, 3, 3)
    said = {"strides": [2, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "dilations": [1, 1], "auto_pad": "same_lower"}
    layer = openvino.read(said, {"weights": w})
    assert layer.geometry.crop == ((0, 0), (0, 0))
    assert_same(evaluate([Case(said, {"weights": w}, x)])[0], layer, x, said)


def test_groups_forget_the_pads_where_an_output_shape_is_given() -> None:
    """The same attributes, one group or two: without groups the begin is cut, with groups it is not."""
    said = {"strides": [2, 2], "pads_begin": [1, 0], "pads_end": [0, 0], "dilations": [1, 1], "output_shape": [5, 6]}
    x = integers(0, 1, 2, 3, 3)
    plain = Case({**said, "auto_pad": "explicit"}, {"weights": integers(1, 2, 2, 3, 3)}, x)
    grouped = Case({**said, "auto_pad": "explicit", "groups": 2}, {"weights": integers(1, 2, 1, 1, 3, 3)}, x)
    for case, crop in ((plain, ((1, 1), (0, 1))), (grouped, ((0, 2), (0, 1)))):
        layer = openvino.read(case.parameters, case.weights, input_size=3)
        assert layer.geometry.crop == crop
        assert_same(evaluate([case])[0], layer, x, case.parameters)


def test_what_openvino_does_not_take() -> None:
    said = {"strides": [2, 2], "kernel": [3, 3], "filters": 1}
    with pytest.raises(ArgumentError, match="auto_pad: expected 'explicit', 'same_upper', 'same_lower' or 'valid'"):
        openvino.read({**said, "auto_pad": "same"}, c_in=1)
    with pytest.raises(ArgumentError, match="pads_begin: expected an integer of at least 0, got -1"):
        openvino.read({**said, "pads_begin": [-1, 0]}, c_in=1)
    with pytest.raises(ArgumentError, match="input_size: expected the input's size beside output_shape"):
        openvino.read({**said, "output_shape": [6, 6]}, c_in=1)
    with pytest.raises(RefusalError, match=r"pads_begin: expected at least 0, got .*; closest: a kernel of \(5, 3\)"):
        openvino.write(Layer(Geometry(3, 2, 1, ((-2, 0), (0, 0))), 1, 1))
