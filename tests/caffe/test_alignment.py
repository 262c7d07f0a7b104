"""Crops that find their offset: as the published nets have them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import prototxt, schema
from upscore.caffe.graph import Graph
from upscore.caffe.modules import LayerError


def graph_of(text: str) -> Graph:
    return Graph(prototxt.read(text + "\n", schema.NetParameter()), device="meta")


def test_the_offsets_of_fcn_8s_come_out_by_themselves() -> None:
    """5, 9 and 31, as in the prototxt that Long, Shelhamer and Darrell published."""
    text = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "caffe_fcn8s.py"))["prototxt"]()
    graph = graph_of(re.sub(r"crop_param \{[^}]*\}", "crop_param { align: true }", text))
    assert [list(layer.param.crop_param.offset) for layer in graph.layers if layer.type == "Crop"] == [
        [5, 5], [9, 9], [31, 31],
    ]  # fmt: skip
    assert graph.shapes["score"] == (1, 21, 500, 500)


V1 = """input: "data" input_dim: 1 input_dim: 1 input_dim: 40 input_dim: 33
layers { name: "c" type: CONVOLUTION bottom: "data" top: "c"
  convolution_param { num_output: 1 kernel_size: 3 pad: 20 } }
layers { name: "p" type: POOLING bottom: "c" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
layers { name: "u" type: DECONVOLUTION bottom: "p" top: "u"
  convolution_param { num_output: 1 kernel_size: 4 stride: 2 } }
layers { name: "crop" type: CROP bottom: "u" bottom: "data" top: "crop" }"""


def test_an_old_crop_without_parameters_aligns() -> None:
    """pad 20 - 1 of the kernel is 19 to the left, and the upsampling's kernel reaches 1 further."""
    graph = graph_of(V1)
    assert list(graph.layer("crop").param.crop_param.offset) == [20, 20]
    assert graph.shapes["crop"] == (1, 1, 40, 33)


def test_todays_crop_without_parameters_begins_at_the_corner() -> None:
    layers = V1.replace("layers", "layer").replace("CONVOLUTION", '"Convolution"').replace("POOLING", '"Pooling"')
    layers = layers.replace('DE"Convolution"', '"Deconvolution"').replace("CROP", '"Crop"')
    graph = graph_of(layers)
    assert list(graph.layer("crop").param.crop_param.offset) == []
    assert graph.remarks == [
        "layer 'crop' (Crop) begins at the corner, as in BVLC Caffe, but its bottoms align at 20, 20; models of the "
        "first FCN branch mean that: give crop_param { align: true }"
    ]
    assert graph_of(V1).remarks == []


def test_what_no_crop_aligns() -> None:
    with pytest.raises(LayerError, match=r"layer 'crop' \(Crop\): no offset aligns its bottoms .*give crop_param"):
        graph_of(V1.replace('bottom: "u" bottom: "data"', 'bottom: "u" bottom: "p"'))
    with pytest.raises(LayerError, match=r"its bottoms align at \('-1', '-1'\), which no crop reaches"):
        graph_of(V1.replace("kernel_size: 3 pad: 20", "kernel_size: 5 pad: 0"))
