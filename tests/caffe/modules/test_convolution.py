"""Convolution, Deconvolution, InnerProduct and Embed beyond what the golden numbers cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Caffe side runs on torch")

Build = Callable[..., Any]


def test_a_kernel_larger_than_its_input_reads_zeros(one_layer: Build) -> None:
    """C divides toward zero: an input of 2 under a kernel of 3 with stride 2 gives 1."""
    graph = one_layer("Convolution", "convolution_param { num_output: 1 kernel_size: 3 stride: 2 }", [(1, 1, 2, 5)])
    assert graph.shapes["t0"] == (1, 1, 1, 2)
    graph.layers[-1].module.blobs[0].data.fill_(1)
    x = torch.arange(10.0).reshape(1, 1, 2, 5)
    assert graph(x)["t0"].flatten().tolist() == [21, 33]


def test_dilation_under_its_older_name(one_layer: Build) -> None:
    fields = "convolution_param {{ num_output: 2 kernel_size: 3 pad: 2 {} weight_filler {{ type: 'gaussian' }} }}"
    new = one_layer("Convolution", fields.format("dilation: 2"), [(1, 3, 9, 8)])
    old = one_layer("Convolution", fields.format("hole: 2"), [(1, 3, 9, 8)])
    uneven = one_layer("Convolution", fields.format("hole_h: 2 hole_w: 1"), [(1, 3, 9, 8)])
    old.load_state_dict(new.state_dict())
    x = torch.randn(1, 3, 9, 8)
    assert torch.equal(new(x)["t0"], old(x)["t0"])
    assert uneven.shapes["t0"] == (1, 2, 9, 10)


@pytest.mark.parametrize(
    ("kind", "fields", "shape", "message"),
    [
        (
            "Convolution",
            "num_output: 1 kernel_h: 3",
            (1, 1, 5, 5),
            "kernel_h: expected kernel_h and kernel_w, both at least 1",
        ),
        ("Deconvolution", "num_output: 1 kernel_size: 3 stride_h: 2", (1, 1, 5, 5), "stride_h"),
        ("Convolution", "num_output: 1", (1, 1, 5, 5), "kernel_size: expected a value"),
        (
            "Convolution",
            "num_output: 0 kernel_size: 1",
            (1, 2, 5, 5),
            "expected channels in and out that group divides",
        ),
        ("Deconvolution", "num_output: 4 group: 2 kernel_size: 1", (1, 3, 5, 5), "got 3 in, num_output 4, group 2"),
        (
            "Convolution",
            "num_output: 1 kernel_size: 7",
            (1, 1, 5, 4),
            r"the output of a \(5, 4\) bottom would have size \(-1, -2\)",
        ),
        ("Deconvolution", "num_output: 1 kernel_size: 1 pad: 3", (1, 1, 5, 7), r"would have size \(-1, 1\)"),
        ("Convolution", "num_output: 1 kernel_size: 1", (3, 2), "expected a bottom of 3 to 5 axes"),
        (
            "Convolution",
            "num_output: 1 kernel_size: 1 axis: 2",
            (1, 1, 5, 5),
            "axis: expected 1, channels after the batch, got 2",
        ),
    ],
)
def test_errors(one_layer: Build, kind: str, fields: str, shape: tuple[int, ...], message: str) -> None:
    from upscore.caffe.modules import LayerError

    with pytest.raises(LayerError, match=f"layer 'layer' .*{message}"):
        one_layer(kind, f"convolution_param {{ {fields} }}", [shape])


def test_other_channels_later_are_an_error(one_layer: Build) -> None:
    from upscore.caffe.modules import LayerError

    graph = one_layer("Convolution", "convolution_param { num_output: 1 kernel_size: 3 }", [(1, 3, 8, 8)])
    with pytest.raises(LayerError, match=r"expected bottoms of one shape \(N, 3, \*2 axes\), got \(1, 4, 8, 8\)"):
        graph(torch.zeros(1, 4, 8, 8))


def test_embed_looks_up_rows(one_layer: Build) -> None:
    from upscore.caffe.modules import LayerError

    fields = "embed_param { num_output: 3 input_dim: 5 weight_filler { type: 'gaussian' } bias_filler { value: 2 } }"
    graph = one_layer("Embed", fields, [(2, 4)])
    index = np.array([[0, 4, 4, 2], [1, 1, 3, 0]])
    weight, bias = (b.detach().numpy() for b in graph.layers[-1].module.blobs)
    top = graph(torch.from_numpy(index.astype(np.float32)))["t0"]
    np.testing.assert_array_equal(top.detach().numpy(), weight[index] + bias)
    top.sum().backward()
    np.testing.assert_array_equal(graph.layers[-1].module.blobs[0].grad[:, 0].numpy(), [2, 2, 1, 1, 2])
    with pytest.raises(LayerError, match="expected indices 0 to 4, got 0 to 5"):
        graph(torch.arange(8.0).reshape(2, 4).clamp(max=5))


def test_inner_product_errors(one_layer: Build) -> None:
    from upscore.caffe.modules import LayerError

    graph = one_layer("InnerProduct", "inner_product_param { num_output: 2 axis: -2 }", [(3, 4, 5)])
    assert (graph.shapes["t0"], tuple(graph.layers[-1].module.blobs[0].shape)) == ((3, 2), (2, 20))
    with pytest.raises(LayerError, match=r"expected 20 elements from axis 1 on, got bottom \(3, 4, 6\)"):
        graph(torch.zeros(3, 4, 6))
    with pytest.raises(LayerError, match="axis: expected -2 to 1 for a bottom of 2 axes, got 3"):
        one_layer("InnerProduct", "inner_product_param { num_output: 2 axis: 3 }", [(3, 4)])
