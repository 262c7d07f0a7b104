"""ONNX: drawn nodes against ONNX Runtime and the reference evaluator, every node test of the package, MaxUnpool."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, assert_same, check_reads_and_writes, code_cases, draw_examples, expected, integers
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, compare, onnx
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

package = pytest.importorskip("onnx", reason="the onnx package is the oracle here")
runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is the oracle here")
reference = pytest.importorskip("onnx.reference", reason="ONNX's reference evaluator is the oracle here")
runtime.set_default_logger_severity(4)
OPSETS = (1, 11, 22)


def node_of(case: Case) -> Any:
    names = ["x", *case.weights]
    attributes = {k: v for k, v in case.parameters.items() if k not in ("filters", "opset")}
    return package.helper.make_node("ConvTranspose", names, ["y"], **attributes)


def model_of(node: Any, inputs: dict[str, np.ndarray], opset: int) -> Any:
    helper = package.helper
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    y = helper.make_tensor_value_info("y", infos[0].type.tensor_type.elem_type, None)
    graph = helper.make_graph([node], "layer", infos, [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def in_runtime(node: Any, inputs: dict[str, np.ndarray], opset: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    model = model_of(node, inputs, opset).SerializeToString()
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def in_reference(node: Any, inputs: dict[str, np.ndarray], opset: int) -> Any:
    return reference.ReferenceEvaluator(model_of(node, inputs, opset)).run(None, inputs)[0]


def run(case: Case) -> Any:
    opset = case.parameters.get("opset", 11)
    try:
        return in_runtime(node_of(case), {"x": case.x, **case.weights}, opset)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@st.composite
def nodes(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(1, 4)) for _ in range(rank)]
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"W": integers(seed, c_in, c_out // groups, *kernel)}
    if draw(st.booleans()):
        weights["B"] = integers(seed, c_out)
    parameters: dict[str, Any] = {
        "strides": stride,
        "dilations": dilation,
        "group": groups,
        "opset": draw(st.sampled_from(OPSETS)),
    }
    if draw(st.booleans()):
        parameters["kernel_shape"] = kernel
    more = [draw(st.integers(0, s - 1)) for s in stride]
    if draw(st.booleans()):
        parameters["output_padding"] = more
    else:
        more = [0] * rank
    mode = draw(st.sampled_from(("pads", "none", "VALID", "SAME_UPPER", "SAME_LOWER", "output_shape")))
    if mode == "pads":
        begin = [draw(st.integers(0, e // 2)) for e in extent]
        parameters["pads"] = begin + [draw(st.integers(0, (e - 1) // 2)) for e in extent]
    elif mode.startswith("SAME") and any(e + p < s for e, p, s in zip(extent, more, stride, strict=True)):
        parameters["auto_pad"] = "NOTSET"  # engines disagree; see the trap below
    elif mode in ("VALID", "SAME_UPPER", "SAME_LOWER"):
        parameters["auto_pad"] = mode
    elif mode == "output_shape":
        full = [(n - 1) * s + e for n, s, e in zip(size, stride, extent, strict=True)]
        parameters["output_shape"] = [
            max(f - draw(st.integers(0, e // 2)), 1) for f, e, s in zip(full, extent, stride, strict=True)
        ]
        parameters["auto_pad"] = draw(st.sampled_from(("NOTSET", "SAME_UPPER", "SAME_LOWER")))
    return Case(parameters, weights, integers(seed, 2, c_in, *size), {"input_size": size})


def _without_opset(case: Case) -> Case:
    return Case({k: v for k, v in case.parameters.items() if k != "opset"}, case.weights, case.x, case.read)


def test_five_hundred_nodes() -> None:
    drawn = draw_examples(nodes())
    opsets = iter([case.parameters["opset"] for case in drawn])

    def evaluate(cases: list[Case]) -> list[Any]:
        return [run(Case({**c.parameters, "opset": next(opsets, 13)}, c.weights, c.x)) for c in cases]

    check_reads_and_writes("onnx", [_without_opset(case) for case in drawn], evaluate)


def test_the_reference_evaluator_agrees_where_it_follows_the_specification() -> None:
    """It is wrong with groups and with output_shape alone, and SAME_UPPER halves what has to be added downwards."""
    checked = 0
    for case in draw_examples(nodes()):
        said = case.parameters
        plain = said["group"] == 1 and said["opset"] > 1
        if not plain or ("output_shape" in said and said["auto_pad"] != "SAME_LOWER"):
            continue
        node, inputs = node_of(case), {"x": case.x, **case.weights}
        layer = onnx.read(_without_opset(case).parameters, case.weights, **case.read)
        assert_same(in_reference(node, inputs, said["opset"]), layer, case.x, said)
        checked += 1
    assert checked > 100


def test_code_runs_pads_included() -> None:
    cases = code_cases("onnx", 40)
    assert any('"Pad"' in text for _, _, text in cases)
    for layer, x, text in cases:
        assert_same(onnx.run(layer, x), layer, x, text)


def node_tests(kind: str) -> list[Any]:
    """Every node test of an operator; importing its module alone makes its cases, importing all takes seconds."""
    cases = importlib.import_module("onnx.backend.test.case.node")
    importlib.import_module(f"onnx.backend.test.case.node.{kind.lower()}")
    found = [t for t in cases._NodeTestCases if any(n.op_type == kind for n in t.model.graph.node)]
    return [pytest.param(t, id=t.name) for t in found]


@pytest.mark.parametrize("test", node_tests("ConvTranspose"))
def test_node_tests_of_conv_transpose(test: Any) -> None:
    (node,) = test.model.graph.node
    for inputs, outputs in test.data_sets:
        x, *rest = map(np.asarray, inputs)
        layer = onnx.read(node, dict(zip(("W", "B"), rest, strict=False)), input_size=x.shape[2:])
        assert_same(np.asarray(outputs[0]), layer, x, test.name)


@pytest.mark.parametrize("test", node_tests("MaxUnpool"))
def test_node_tests_of_max_unpool(test: Any) -> None:
    (node,) = test.model.graph.node
    for inputs, outputs in test.data_sets:
        x, indices, *shape = map(np.asarray, inputs)
        y = onnx.unpool(x, indices, onnx.attributes(node), *(tuple(s.tolist()) for s in shape))
        assert np.array_equal(y, np.asarray(outputs[0]))


@pytest.mark.parametrize("kind", ["ConvTranspose", "MaxUnpool"])
def test_no_node_test_is_left_out(kind: str) -> None:
    """As many cases as the onnx package's source calls expect() in, and none in another module."""
    folder = Path(package.__file__).parent / "backend/test/case/node"
    calling = {path.stem: path.read_text() for path in folder.glob("*.py") if f'"{kind}"' in path.read_text()}
    assert set(calling) == {kind.lower()}
    assert len(node_tests(kind)) == calling[kind.lower()].count(" expect(") > 1


def converted_tests() -> list[Any]:
    """The tests of ConvTranspose that the onnx package stores with their data."""
    root = Path(package.__file__).parent / "backend/test/data"
    found = sorted(p for p in root.rglob("*") if p.is_dir() and "convtranspose" in p.name.lower())
    return [pytest.param(p, id=p.name) for p in found]


@pytest.mark.parametrize("folder", converted_tests())
def test_stored_tests_of_conv_transpose(folder: Path) -> None:
    model = package.load(folder / "model.onnx")
    (node,) = (n for n in model.graph.node if n.op_type == "ConvTranspose")
    values = {t.name: package.numpy_helper.to_array(t) for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in values]
    for data in sorted(folder.glob("test_data_set_*")):
        for i, name in enumerate(names):
            values[name] = package.numpy_helper.to_array(package.load_tensor(data / f"input_{i}.pb"))
        x, *rest = (values[name] for name in node.input)
        layer = onnx.read(node, dict(zip(("W", "B"), rest, strict=False)), input_size=x.shape[2:])
        wanted = package.numpy_helper.to_array(package.load_tensor(data / "output_0.pb"))
        y = expected(layer, x)
        assert y.shape == wanted.shape
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)  # float32 weights that are no integers


def _both(parameters: dict[str, Any], opset: int = 11) -> tuple[list[float], list[float]]:
    """One stamp of the taps 1, 2, 3 in ONNX Runtime and in the reference evaluator."""
    x = np.zeros((1, 1, 3), np.float32)
    x[0, 0, 0] = 1
    case = Case(parameters, {"W": np.array([[[1, 2, 3]]], np.float32)}, x)
    inputs = {"x": x, **case.weights}
    return tuple(engine(node_of(case), inputs, opset).ravel().tolist() for engine in (in_runtime, in_reference))  # type: ignore[return-value]


def test_same_upper_cuts_after_and_same_lower_before() -> None:
    upper, lower = (
        {"strides": [2], "auto_pad": f"SAME_{way}", "kernel_shape": [3], "filters": 1} for way in ("UPPER", "LOWER")
    )
    assert _both({k: v for k, v in upper.items() if k != "filters"}) == ([1, 2, 3, 0, 0, 0],) * 2
    assert _both({k: v for k, v in lower.items() if k != "filters"}) == ([2, 3, 0, 0, 0, 0],) * 2
    found = compare(onnx.read(upper, c_in=1), onnx.read(lower, c_in=1))
    assert str(found).startswith("the second output is shifted 1 pixel left; sizes agree")


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_output_shape_with_output_padding(opset: int, auto_pad: str) -> None:
    """The output padding adds nothing to output_shape, but takes part in how much is cut, and so in the alignment."""
    said = {"strides": [2], "output_shape": [6], "output_padding": [1], "auto_pad": auto_pad}
    weights = {"W": np.array([[[1, 2, 3]]], np.float32)}
    layer = onnx.read(said, weights, input_size=3)
    assert layer.geometry.crop == ((1, 0),)
    x = integers(3, 1, 1, 3)
    assert_same(in_runtime(node_of(Case(said, weights, x)), {"x": x, **weights}, opset), layer, x, said)


@pytest.mark.parametrize("opset", OPSETS)
def test_output_shape_alone_cuts_the_odd_position_before(opset: int) -> None:
    """In every opset of ONNX Runtime, though opset 1 states the opposite; pads beside output_shape do not count."""
    said = {"strides": [2], "output_shape": [6]}
    weights = {"W": np.array([[[1, 2, 3]]], np.float32)}
    x = integers(3, 1, 1, 3)
    for parameters in (said, {**said, "pads": [0, 1]}):
        layer = onnx.read(parameters, weights, input_size=3)
        assert layer.geometry.crop == ((1, 0),)
        assert_same(in_runtime(node_of(Case(parameters, weights, x)), {"x": x, **weights}, opset), layer, x, said)


def test_an_output_shape_beyond_the_taps() -> None:
    said = {"strides": [2], "kernel_shape": [3], "filters": 1}
    assert onnx.read({**said, "output_shape": [8]}, c_in=1, input_size=3).geometry.crop == ((0, -1),)
    with pytest.raises(
        ArgumentError, match=r"output_shape: expected less than the stride 2 beyond all .* got 2 to add"
    ):
        onnx.read({**said, "output_shape": [9]}, c_in=1, input_size=3)


def test_engines_disagree_about_same_with_a_kernel_below_the_stride_so_it_is_not_read() -> None:
    said = {"strides": [5], "auto_pad": "SAME_UPPER"}
    ours, theirs = _both(said)
    assert len(ours) == 13
    assert len(theirs) == 15
    with pytest.raises(
        ArgumentError, match=r"auto_pad: expected nothing to add for SAME \(engines disagree\), got 2 to add"
    ):
        onnx.read({**said, "kernel_shape": [3], "filters": 1}, c_in=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pads": [1, 1]}, r"pads: expected 4 integers of at least 0, got \(1, 1\)"),
        ({"pads": [-1, 0, 0, 0]}, "pads: expected 4 integers of at least 0"),
        ({"auto_pad": "SAME"}, "auto_pad: expected NOTSET, VALID, SAME_UPPER or SAME_LOWER, got 'SAME'"),
        ({"output_padding": [1, 0]}, "output_padding: expected less than the larger of stride 1 and dilation 1"),
        ({"output_shape": [9, 9]}, "input_size: expected the size of X beside output_shape"),
        ({"kernel": [3, 3]}, "parameters: expected names that ONNX has, got kernel"),
    ],
)
def test_what_is_no_conv_transpose(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        onnx.read({"kernel_shape": [3, 3], "filters": 1, **parameters}, c_in=1)


def test_positions_added_before_are_refused() -> None:
    with pytest.raises(RefusalError, match=r"ONNX cannot say this layer: pads: .* closest: a kernel of \(4, 3\)"):
        onnx.write(Layer(Geometry(3, 1, 1, ((-1, 0), (0, 0))), 1, 1))


@st.composite
def unpoolings(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any]]:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    stride = [draw(st.integers(k, 3)) for k in kernel]  # windows that do not overlap give distinct indices
    size = [(draw(st.integers(1, 3)) - 1) * s + k for s, k in zip(stride, kernel, strict=True)]
    seed = draw(st.integers(0, 2**32 - 1))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *size)
    image = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    return image, {"kernel_shape": kernel, "strides": stride}


def test_five_hundred_unpoolings() -> None:
    """MaxPool of ONNX Runtime gives values and indices; its MaxUnpool and the reference evaluator's put them back."""
    for count, (image, said) in enumerate(draw_examples(unpoolings())):
        pool = package.helper.make_node("MaxPool", ["x"], ["y", "i"], **said)
        helper = package.helper
        infos = [helper.make_tensor_value_info("x", package.TensorProto.FLOAT, image.shape)]
        outputs = [
            helper.make_tensor_value_info("y", package.TensorProto.FLOAT, None),
            helper.make_tensor_value_info("i", package.TensorProto.INT64, None),
        ]
        graph = helper.make_graph([pool], "pool", infos, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values, indices = session.run(None, {"x": image})
        unpool = helper.make_node("MaxUnpool", ["x", "i"], ["y"], **said)
        inputs = {"x": values, "i": indices}
        y = onnx.unpool(values, indices, said)
        assert np.array_equal(y, in_runtime(unpool, inputs, 11))
        if count % 5 == 0:
            assert np.array_equal(y, in_reference(unpool, inputs, 11))
        planes = onnx.plane_switches(indices, image.shape[2:])
        assert np.array_equal(onnx.tensor_switches(planes, image.shape[2:]), indices)
        flat = image.reshape(*image.shape[:2], -1)
        assert np.array_equal(
            np.take_along_axis(flat, planes.reshape(*planes.shape[:2], -1), -1), values.reshape(*values.shape[:2], -1)
        )


def test_an_index_outside_and_an_output_too_small() -> None:
    said = {"kernel_shape": [2], "strides": [2]}
    with pytest.raises(ArgumentError, match=r"indices: expected positions in the pooled tensor \(1, 1, 4\)"):
        onnx.unpool(np.ones((1, 1, 2)), np.array([[[0, 4]]]), said)
    with pytest.raises(
        ArgumentError, match=r"output_shape: expected at least \(1, 1, 4\) on every axis, got \(1, 1, 3\)"
    ):
        onnx.unpool(np.ones((1, 1, 2)), np.array([[[0, 3]]]), said, (1, 1, 3))
