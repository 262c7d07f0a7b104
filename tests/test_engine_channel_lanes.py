"""Lanes along channels give the bits of lanes along positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upscore import cpu, engine
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", cpu.available())
def test_small_maps(isa, dtype):
    """The sizes decide which way is taken. A small map with zeros around it is a large one, cropped."""
    cpu.force(isa)
    rng = np.random.default_rng(7)
    w, bias = rng.standard_normal((67, 32, 4, 3)).astype(dtype), rng.standard_normal(32).astype(dtype)
    small = rng.standard_normal((3, 67, 3, 5)).astype(dtype)
    large = np.zeros((3, 67, 43, 65), dtype)
    large[:, :, 20:23, 30:35] = small
    geometry = Geometry((4, 3), (2, 1))
    layer = engine.Packed(w, bias, geometry, 1)
    sizes = [(x.shape[2:], geometry.output_size(x.shape[2:])) for x in (small, large)]
    alone, among_zeros = (layer.run(x, geometry, size[1]) for x, size in zip((small, large), sizes, strict=True))
    assert " of a small map: lanes run along channels" in layer.why(3, geometry, *sizes[0])
    assert "small map" not in layer.why(3, geometry, *sizes[1])
    np.testing.assert_array_equal(alone, among_zeros[:, :, 40 : 40 + alone.shape[2], 30 : 30 + alone.shape[3]])


@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize(("kernel", "stride", "channels"), [(4, 2, 20), (3, 2, 5), (2, 2, 40), (3, 3, 9), (3, 1, 24)])
def test_small_maps_of_any_channels(kernel, stride, channels, isa):
    """Weights are packed in vectors, too, at the first call whose lanes run along channels."""
    cpu.force(isa)
    rng = np.random.default_rng(channels)
    w = rng.standard_normal((260, channels, kernel, kernel)).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    x = rng.standard_normal((9, 260, 3, 2)).astype(np.float32)
    geometry = Geometry((kernel, kernel), stride)
    size = geometry.output_size((3, 2))
    layer = engine.Packed(w, bias, geometry, 1, method=engine.Method.DIRECT)
    packed = layer._plan.packed_bytes
    y = layer.run(x, geometry, size)
    lanes = "lanes run along channels" in layer.why(9, geometry, (3, 2), size)
    assert lanes == (layer._plan.packed_bytes > packed)
    assert lanes or isa != "avx512" or channels == 5
    exact = torch.nn.functional.conv_transpose2d(*(torch.from_numpy(a).double() for a in (x, w, bias)), stride)
    assert np.linalg.norm(y - exact.numpy()) <= 1e-6 * torch.linalg.norm(exact)
    for threads in (2, 7):
        np.testing.assert_array_equal(layer.run(x, geometry, size, threads=threads), y)
    for n in (0, 8):
        np.testing.assert_array_equal(layer.run(x[n : n + 1], geometry, size)[0], y[n])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize(
    ("x", "w", "geometry", "groups"),
    [
        ((2, 48, 41, 56), (48, 20, 5, 5), Geometry((5, 5), 3, crop=((3, 1), (-1, 2))), 1),
        ((1, 32, 40, 47), (32, 16, 7, 7), Geometry((7, 7), 5, (2, 1), crop=((-9, 4), (2, 30))), 1),
        ((1, 64, 12, 13, 20), (64, 16, 4, 4, 3), Geometry((4, 4, 3), 2, crop=((1, 1), (5, 0), (0, -4))), 1),
        ((1, 64, 43, 130), (64, 15, 4, 3), Geometry((4, 3), (2, 3)), 2),
    ],
)
def test_rectangles_of_strided_maps(x, w, geometry, groups, isa, dtype):
    """Whether weights were packed for any call, for channels last, or for this one call alone."""
    cpu.force(isa)
    rng = np.random.default_rng(11)
    weights = rng.standard_normal(w).astype(dtype)
    layer = engine.Packed(weights, None, geometry, groups, adjoint=True)
    size = geometry.output_size(x[2:])
    grad = rng.standard_normal((x[0], w[1] * groups, *size)).astype(dtype)
    why = layer.why(x[0], geometry, size, x[2:])
    if isa == "avx512" and dtype is np.float32:  # others have lanes so few that picking inputs out is quicker
        assert "lanes run along channels" in why
        assert "small map" not in why
    expected = layer.run(grad, geometry, x[2:])
    last = engine.Packed(weights, None, geometry, groups, adjoint=True, last=True)
    turned = np.ascontiguousarray(np.moveaxis(grad, 1, -1))
    np.testing.assert_array_equal(np.moveaxis(last.run_last(turned, geometry, x[2:]), -1, 1), expected)
    once = engine.Packed(weights, None, geometry, groups, adjoint=True, once=(x[0], size, x[2:], 2))
    np.testing.assert_array_equal(once.run(grad, geometry, x[2:], threads=2), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize(
    ("x", "w", "geometry", "groups"),
    [
        ((4, 10, 16, 7, 10), (10, 33, 4, 2, 1), Geometry((4, 2, 1), (3, 2, 1), crop=((1, 2), (-3, 1), (0, 0))), 1),
        ((1, 20, 36, 59), (20, 24, 5, 4), Geometry((5, 4), 3, crop=((0, 5), (2, -4))), 2),
        ((1, 72, 40, 40), (72, 35, 2, 2), Geometry((2, 2), 2), 1),
    ],
)
def test_channels_that_do_not_fill_vectors(x, w, geometry, groups, adjoint, last, isa, dtype):
    """Weights packed for one call are padded for lanes along channels, where that is faster."""
    cpu.force(isa)
    rng = np.random.default_rng(13)
    weights = rng.standard_normal(w).astype(dtype)
    size = geometry.output_size(x[2:])
    sizes = (size, x[2:]) if adjoint else (x[2:], size)
    inputs = rng.standard_normal((x[0], w[1] * groups if adjoint else x[1], *sizes[0])).astype(dtype)
    bias = None if adjoint else rng.standard_normal(w[1] * groups).astype(dtype)
    expected = engine.Packed(weights, bias, geometry, groups, adjoint=adjoint).run(inputs, geometry, sizes[1])
    once = engine.Packed(
        weights, bias, geometry, groups, adjoint=adjoint, last=last, once=(x[0], *sizes, 2), method=engine.Method.DIRECT
    )
    if isa == "avx512" and dtype is np.float32 and adjoint and last:
        assert "lanes run along channels" in once.why(x[0], geometry, *sizes)
    if last:
        turned = np.ascontiguousarray(np.moveaxis(inputs, 1, -1))
        result = np.moveaxis(once.run_last(turned, geometry, sizes[1], threads=2), -1, 1)
    else:
        result = once.run(inputs, geometry, sizes[1], threads=2)
    if adjoint:
        np.testing.assert_array_equal(result, expected)
    else:  # phases that are computed together for any call are summed in other blocks
        np.testing.assert_allclose(result, expected, rtol=0, atol=20 * np.finfo(dtype).eps * np.abs(expected).max())
