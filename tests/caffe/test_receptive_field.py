"""Receptive fields: as published for FCN, and as gradients show them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")
pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import prototxt, schema  # noqa: E402
from upscore.caffe.graph import Graph  # noqa: E402
from upscore.caffe.receptive_field import receptive_fields  # noqa: E402


def test_vggs_fc7_sees_404_pixels_every_32() -> None:
    """Long, Shelhamer and Darrell 2015, table 1: FCN-VGG16 has a receptive field of 404 and a stride of 32."""
    text = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "caffe_fcn8s.py"))["prototxt"]()
    views = receptive_fields(Graph(prototxt.read(text, schema.NetParameter()), device="meta"))
    assert (views["fc7"].size, [float(s) for s in views["fc7"].stride]) == ((404, 404), [32, 32])
    assert [float(s) for s in views["score"].stride] == [1, 1]


def test_as_gradients_show_it() -> None:
    text = """input: "x" input_dim: 1 input_dim: 1 input_dim: 60 input_dim: 64
    layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 1 kernel_h: 3 kernel_w: 5
      stride_h: 2 stride_w: 1 weight_filler { value: 1 } } }
    layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
    layer { name: "d" type: "Convolution" bottom: "p" top: "d" convolution_param { num_output: 1 kernel_size: 3
      dilation: 2 weight_filler { value: 1 } } }
    layer { name: "u" type: "Deconvolution" bottom: "d" top: "u" convolution_param { num_output: 1 kernel_size: 4
      stride: 2 weight_filler { value: 1 } } }
    layer { name: "i" type: "InnerProduct" bottom: "u" top: "i" inner_product_param { num_output: 1 } }"""
    graph = Graph(prototxt.read(text, schema.NetParameter()))
    views = receptive_fields(graph)
    x = torch.zeros(1, 1, 60, 64, requires_grad=True)
    top = graph({"x": x})
    for name in ("c", "p", "d", "u"):
        blob = top[name]
        (seen,) = torch.autograd.grad(blob[0, 0, blob.shape[2] // 2, blob.shape[3] // 2], x, retain_graph=True)
        rows, columns = torch.nonzero(seen[0, 0], as_tuple=True)
        assert views[name].size == (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1), name
    assert views["i"].size is None
    assert str(views["i"]) == "all"
