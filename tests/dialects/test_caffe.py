"""Caffe: its own results, five hundred drawn layers, and what it dies of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dialects.oracles import Case, assert_same, check_reads_and_writes, draw_examples, expected, integers
from hypothesis import strategies as st

from upscore.dialects import Layer, RefusalError, caffe
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

torch = pytest.importorskip("torch", reason="PyTorch stands in for Caffe where no stored result does")
GOLDEN = np.load(Path(__file__).parents[1] / "golden/caffe/layers.npz")
NAMES = sorted({name.split("/")[0] for name in GOLDEN.files if name.startswith("deconv_")})


@pytest.mark.parametrize("name", NAMES)
def test_caffes_own_results(name: str) -> None:
    arrays = {key.split("/")[1]: GOLDEN[key] for key in GOLDEN.files if key.startswith(f"{name}/")}
    meta = json.loads(str(arrays["meta"]))
    fields = meta["layer"].get("convolution_param", {})
    weights = {"weight": arrays["param0"], **({"bias": arrays["param1"]} if "param1" in arrays else {})}
    layer = caffe.read(fields, weights)
    for i in range(len(meta["bottom_shapes"])):
        x, top = arrays[f"bottom{i}"], arrays[f"top{i}"]
        if meta["data"] == "integer":
            assert_same(top, layer, x, name)
        else:
            y = expected(layer, x)
            assert y.shape == top.shape
            assert np.abs(y - top).max() <= 2e-6 * np.abs(y).max()  # Caffe's own error in float32
    written = caffe.write(layer)
    assert caffe.read(written.parameters, written.weights) == layer


def test_enough_cases_are_stored() -> None:
    assert len(NAMES) >= 35
    assert sum(json.loads(str(GOLDEN[f"{name}/meta"]))["data"] == "integer" for name in NAMES) >= 10


@st.composite
def layers(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    style = draw(st.sampled_from(("repeated", "h_w", "once"))) if rank == 2 else "repeated"
    kernel = [draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank)]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
    if style == "once":
        kernel, stride, dilation = kernel[:1] * 2, stride[:1] * 2, dilation[:1] * 2
    pad = [draw(st.integers(0, d * (k - 1) // 2)) for k, d in zip(kernel, dilation, strict=True)]
    pad = pad[:1] * 2 if style == "once" else pad
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    i, o = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    seed = draw(st.integers(0, 2**32 - 1))
    weights = {"weight": integers(seed, groups * i, o, *kernel)}
    fields: dict[str, Any] = {"num_output": groups * o, "bias_term": draw(st.booleans())}
    if fields["bias_term"]:
        weights["bias"] = integers(seed, groups * o)
    if groups > 1:
        fields["group"] = groups
    if style == "h_w":
        fields |= {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1]}
        fields |= {"pad_h": pad[0], "pad_w": pad[1], "dilation": dilation}
    elif style == "once":
        fields |= {"kernel_size": kernel[0], "stride": [stride[0]], "pad": pad[0], "dilation": dilation[:1]}
    else:
        fields |= {"kernel_size": kernel, "stride": stride, "pad": pad, "dilation": dilation}
    x = integers(seed, 2, groups * i, *(draw(st.integers(1, 4)) for _ in range(rank)))
    return Case(fields, weights, x)


def run(case: Case) -> np.ndarray:
    """The layer in PyTorch, which has Caffe's layout and padding; its arguments come straight from the fields."""
    rank, p = case.x.ndim - 2, case.parameters

    def per_axis(name: str, short: str, default: int) -> list[int]:
        if f"{short}_h" in p:
            return [p[f"{short}_h"], p[f"{short}_w"]]
        value = p.get(name, default)
        value = value if isinstance(value, list) else [value]
        return value * rank if len(value) == 1 else value

    function = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    bias = torch.from_numpy(case.weights["bias"]) if "bias" in case.weights else None
    return function(
        torch.from_numpy(case.x),
        torch.from_numpy(np.array(case.weights["weight"])),
        bias if bias is None else bias.clone(),
        stride=per_axis("stride", "stride", 1),
        padding=per_axis("pad", "pad", 0),
        dilation=per_axis("dilation", "dilation", 1),
        groups=p.get("group", 1),
    ).numpy()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # layers are frozen
def test_five_hundred_layers() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    check_reads_and_writes("caffe", draw_examples(layers()), lambda cases: [run(case) for case in cases])
    torch.set_num_threads(threads)


def test_pad_h_alone_leaves_pad_w_at_zero() -> None:
    assert caffe.geometry({"kernel_size": 3, "pad_h": 1}).crop == ((1, 1), (0, 0))
    assert caffe.geometry({"kernel_size": 3, "pad_w": 1}).crop == ((0, 0), (1, 1))


@pytest.mark.parametrize(
    ("fields", "rank", "message"),
    [
        ({"kernel_size": 3, "stride_h": 2}, 2, "stride_h: expected stride_h and stride_w, both at least 1"),
        ({"kernel_h": 3}, 2, "kernel_h: expected kernel_h and kernel_w, both at least 1"),
        (
            {"kernel_size": 3, "kernel_h": 3, "kernel_w": 3},
            2,
            "kernel_size: expected none beside kernel_h and kernel_w",
        ),
        ({"kernel_size": 3, "pad_h": 1}, 3, "pad_h: expected only with 2 spatial axes, not 3"),
        ({"stride": 2}, 2, "kernel_size: expected a value, or kernel_h and kernel_w, got none"),
        ({"kernel_size": [3, 3, 3]}, 2, r"kernel_size: expected 1 value, or 2 \(one per axis\)"),
        ({"kernel_size": 3, "dilate": 2}, 2, "convolution_param: expected fields of ConvolutionParameter, got dilate"),
        ({"kernel_size": 3, "axis": 2}, 2, "axis: expected 1, channels after the batch, got 2"),
        ({"kernel_size": 0}, 2, "kernel"),
    ],
)
def test_what_caffe_dies_of(fields: dict[str, Any], rank: int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        caffe.geometry(fields, rank)


def test_blobs_that_do_not_fit() -> None:
    fields = {"num_output": 4, "kernel_size": 3}
    with pytest.raises(ArgumentError, match="c_out: expected 2, as the weight has, got 4"):
        caffe.read(fields, {"weight": np.zeros((3, 2, 3, 3))})
    with pytest.raises(ArgumentError, match="bias_term: expected true, as there is a bias blob, got False"):
        caffe.read({**fields, "bias_term": False}, {"weight": np.zeros((3, 4, 3, 3)), "bias": np.zeros(4)})
    with pytest.raises(ArgumentError, match="c_in: expected the number of channels, where no weights are given"):
        caffe.read(fields)
    with pytest.raises(ArgumentError, match="weights: expected the keys 'weight' and perhaps 'bias'"):
        caffe.read(fields, {"W": np.zeros((3, 4, 3, 3))})


def test_an_old_bias_blob_has_four_axes() -> None:
    layer = caffe.read(
        {"num_output": 4, "kernel_size": 3}, {"weight": np.zeros((3, 4, 3, 3)), "bias": np.ones((1, 1, 1, 4))}
    )
    assert layer.bias is not None
    assert layer.bias.shape == (4,)


@pytest.mark.parametrize("factor", range(1, 9))
def test_the_template_of_a_factor(factor: int) -> None:
    """kernel 2f - f % 2, stride f, pad ceil((f - 1) / 2), group C, bilinear; constant images stay constant inside."""
    layer = caffe.template(factor, channels=3)
    fields = caffe.write(layer).parameters
    assert fields["kernel_size"] == [2 * factor - factor % 2]
    assert fields.get("stride", [1]) == [factor]
    assert fields.get("pad", [0]) == [-(-(factor - 1) // 2)]
    assert (fields["group"], fields["num_output"]) == (3, 3)
    assert layer.output_size((5, 7)) == (5 * factor, 7 * factor)
    y = expected(layer, np.ones((1, 3, 4, 4)))
    inner = slice(factor, -factor)
    np.testing.assert_allclose(y[:, :, inner, inner], 1, rtol=1e-6)


def test_the_templates_weights_are_caffes() -> None:
    for factor in (2, 3, 4, 5):
        stored = GOLDEN[f"deconv_bilinear_x{factor}/param0"]
        np.testing.assert_allclose(caffe.template(factor, channels=stored.shape[0]).weight, stored, rtol=1e-6)


def test_prototxt_of_a_layer_with_a_crop() -> None:
    text = caffe.code(Layer(Geometry((3, 5), (2, 1), 1, ((1, 0), (2, 3))), 2, 3, has_bias=True))
    assert "kernel_size: 3\n    kernel_size: 5" in text
    assert "pad: 0\n    pad: 2" in text
    assert 'type: "Crop"' in text
    assert "crop_param { axis: 2 offset: 1 offset: 0 }" in text


def test_refusals() -> None:
    odd = Layer(Geometry(3, 2, 1, ((0, 1), (0, 1))), 1, 1)
    with pytest.raises(RefusalError, match=r"Caffe cannot say this layer: pad: .* then a Crop layer to cut 1 after"):
        caffe.write(odd)
    with pytest.raises(RefusalError, match=r"got add 1 before on every axis; closest: a larger kernel"):
        caffe.code(Layer(Geometry(3, 2, 1, ((-1, 0), (-1, 0))), 1, 1))
