"""The coordinate maps: the offsets of the FCNs, and what random nets really do to a pixel."""

# ruff: noqa: C408  (dict(...) is how specifications are written)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upscore.caffe import NetSpec
from upscore.caffe import layers as L
from upscore.caffe.coord_map import (
    AxisMismatchException,
    CropError,
    UndefinedMapException,
    coord_map,
    coord_map_from_to,
    crop,
)


def tower(rank=2, kernel=3, stride=1, pad=0, pool=2, up_kernel=4, up_stride=2, up_pad=0):
    """Convolution, pooling, deconvolution, and beside them an input that nothing leads to."""
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[2, 1] + [100] * rank))
    n.other = L.Input(shape=dict(dim=[2, 1] + [20] * rank))
    n.conv = L.Convolution(n.data, num_output=10, kernel_size=kernel, stride=stride, pad=pad)
    n.pool = L.Pooling(n.conv, kernel_size=pool, stride=pool, pad=0)
    n.up = L.Deconvolution(
        n.pool, convolution_param=dict(num_output=10, kernel_size=up_kernel, stride=up_stride, pad=up_pad)
    )
    return n


def offsets_of_a_pixel(stride_conv, kernel, pad, pool, up_kernel, up_stride, up_pad):
    """Where the centre of mass of what one pixel of the deconvolution depends on lies, measured with torch."""
    size = 61
    data = torch.zeros(1, 1, size, dtype=torch.float64, requires_grad=True)
    conv = torch.nn.functional.conv1d(
        data, torch.ones(1, 1, kernel, dtype=torch.float64), stride=stride_conv, padding=pad
    )
    pooled = torch.nn.functional.avg_pool1d(conv, pool, stride=pool)
    up = torch.nn.functional.conv_transpose1d(
        pooled, torch.ones(1, 1, up_kernel, dtype=torch.float64), stride=up_stride, padding=up_pad
    )
    positions, weights = np.arange(size), []
    # Single pixels see lopsided sets of taps, so a whole period of outputs in the middle is averaged.
    middle = up.shape[-1] // 2
    period = range(middle, middle + up_stride)
    for y in period:
        (grad,) = torch.autograd.grad(up[0, 0, y], data, retain_graph=True)
        weights.append(grad[0, 0].numpy())
    total = np.sum(weights, axis=0)
    return np.mean(list(period)), float((positions * total).sum() / total.sum())


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 5),
    pad=st.integers(0, 3),
    pool=st.integers(1, 3),
    up_taps=st.integers(1, 3),
    up_pad=st.integers(0, 2),
    stride_conv=st.integers(1, 2),
)
def test_the_map_is_where_the_gradient_lies(kernel, pad, pool, up_taps, up_pad, stride_conv):
    up_stride = pool * stride_conv
    up_kernel = up_taps * up_stride  # a multiple of the stride, so that all phases have equal gain
    n = tower(1, kernel, stride_conv, pad, pool, up_kernel, up_stride, up_pad)
    axis, a, b = coord_map_from_to(n.up, n.data)
    y, centre = offsets_of_a_pixel(stride_conv, kernel, pad, pool, up_kernel, up_stride, up_pad)
    assert axis == 1
    assert a * y + b == pytest.approx(centre, abs=1e-9)


def test_each_axis_has_its_own_numbers():
    n = tower(2, kernel=[5, 3], pad=[2, 0], up_kernel=[4, 2], up_pad=[1, 0])
    _, a, b = coord_map_from_to(n.up, n.data)
    _, _, high = coord_map_from_to(*(lambda m: (m.up, m.data))(tower(kernel=5, pad=2, up_kernel=4, up_pad=1)))
    _, _, wide = coord_map_from_to(*(lambda m: (m.up, m.data))(tower(kernel=3, pad=0, up_kernel=2, up_pad=0)))
    assert a.tolist() == [1, 1]
    assert b.tolist() == [high[0], wide[0]]
    assert b[0] != b[1]


def test_h_and_w_fields_are_the_two_axes():
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, 9, 9]))
    n.up = L.Deconvolution(n.data, kernel_h=3, kernel_w=5, stride_h=2, stride_w=3, pad_h=1, num_output=1)
    axis, a, b = coord_map(n.up.fn)
    assert axis == 1
    assert a.tolist() == [2, 3]
    assert b.tolist() == [0, 2]  # (k - 1)/2 - p, and pad_h alone leaves pad_w at 0


def test_dilation_widens_the_kernel():
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, 9, 9]))
    n.conv = L.Convolution(n.data, kernel_size=3, dilation=4, num_output=1)
    assert coord_map_from_to(n.conv, n.data)[2].tolist() == [4]


def test_the_way_back_is_the_inverse():
    n = tower(kernel=4, stride=2, pad=1)
    _, a, b = coord_map_from_to(n.pool, n.data)
    _, a_back, b_back = coord_map_from_to(n.data, n.pool)
    assert a * a_back == pytest.approx(1)
    assert a * b_back + b == pytest.approx(0)


def test_pass_through_layers_and_crops_lie_on_the_way():
    n = tower()
    n.relu = L.ReLU(n.up, in_place=True)
    n.scaled = L.Scale(n.relu)
    n.cut = L.Crop(n.scaled, n.other, axis=2, offset=[3, 7])
    _, _, before = coord_map_from_to(n.up, n.data)
    axis, a, after = coord_map_from_to(n.cut, n.data)
    assert axis == 1
    assert a.tolist() == [1, 1]
    assert (after - before).tolist() == [3, 7]


def test_two_branches_meet_below():
    n = tower()
    n.skip = L.Convolution(n.conv, kernel_size=5, num_output=10)
    _, a, b = coord_map_from_to(n.up, n.skip)
    assert a.tolist() == [1]
    assert b.tolist() == [-1 - 2]  # up sits 1 above conv, skip 2 inside of it


def test_crop_makes_the_layer():
    n = tower(pad=100)
    n.score = crop(n.up, n.data)
    layer = n.to_proto().layer[-1]
    assert layer.type == "Crop"
    assert list(layer.bottom) == ["up", "data"]
    assert layer.crop_param.axis == 2
    assert list(layer.crop_param.offset) == [100]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"up_stride": 1, "up_kernel": 4},
            "scale: expected two tops of the same scale, got 2; for example an upsampling",
        ),
        ({"pad": 0, "up_kernel": 2}, "offset: expected whole offsets of at least 0, got -1"),
        ({"pad": 9, "up_kernel": 3}, "offset: expected whole offsets of at least 0, got 17/2"),
    ],
)
def test_crops_that_cannot_align_say_why(fields, message):
    n = tower(**fields)
    with pytest.raises(CropError, match=message):
        crop(n.up, n.data)
    with pytest.raises(AssertionError):  # what programs written for pycaffe catch
        crop(n.up, n.data)


def test_unconnected_tops_have_no_map():
    n = tower()
    with pytest.raises(UndefinedMapException, match="no common bottom"):
        coord_map_from_to(n.up, n.other)


def test_layers_without_a_map_break_the_way():
    n = tower()
    n.ip = L.InnerProduct(n.up, num_output=10)
    with pytest.raises(UndefinedMapException, match="no common bottom"):
        coord_map_from_to(n.ip, n.data)
    with pytest.raises(UndefinedMapException, match="a InnerProduct layer has no map of coordinates"):
        coord_map(n.ip.fn)


def test_a_layer_without_a_kernel_is_named():
    n = tower()
    with pytest.raises(UndefinedMapException, match="the Convolution layer says no geometry: kernel_size"):
        coord_map(L.Convolution(n.data, num_output=1).fn)


def test_axes_must_agree():
    n = tower()
    n.shifted = L.Convolution(n.pool, kernel_size=3, axis=0, num_output=1)
    with pytest.raises(AxisMismatchException, match="begin after axis 1 in one layer and after axis 0"):
        coord_map_from_to(n.shifted, n.data)
    n.deep = L.Convolution(n.conv, kernel_size=[3, 3, 3], num_output=1)
    n.flat = L.Convolution(n.deep, kernel_size=[3, 3], num_output=1)
    with pytest.raises(AxisMismatchException, match="spatial axes"):
        coord_map_from_to(n.flat, n.data)
