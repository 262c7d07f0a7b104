"""The matrix unit: float32 products of bfloat16 parts, as exact as those of vectors, in every direction and layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from upscore import cpu, engine
from upscore.geometry import Geometry

pytestmark = [
    pytest.mark.skipif("amx" not in cpu.available(), reason="hardware: needs a matrix unit (AMX)"),
    pytest.mark.usefixtures("restore_engine_settings"),
]

CONVOLUTIONS = (
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
)
# name: batch, channels in and out of a group, groups, input size, geometry. Tiles that are filled and not, one to three
# axes, windows of more places than are summed at once, crops that differ.
LAYERS = {
    "fused": (1, 64, 48, 1, (20, 37), Geometry((2, 2), 2)),
    "apart": (2, 64, 48, 1, (20, 37), Geometry((4, 4), 2, crop=((1, 0), (2, 1)))),
    "filled": (1, 128, 64, 1, (16, 16), Geometry((4, 4), 2, crop=1)),
    "many phases": (1, 32, 21, 1, (9, 7), Geometry((16, 8), (8, 4))),
    "stride 1": (1, 70, 100, 1, (14, 9), Geometry((3, 3), 1, dilation=(2, 1))),
    "few rows": (4, 40, 5, 1, (50,), Geometry(5, 3)),
    "three axes": (1, 33, 17, 1, (5, 6, 20), Geometry((3, 4, 5), (1, 2, 3), crop=((1, 0), (0, 2), (1, 1)))),
    "groups": (2, 32, 20, 2, (13, 17), Geometry((3, 3), 2, crop=((1, 0), (0, 1)))),
    "many places": (1, 300, 40, 1, (9, 9), Geometry((9, 9), 2, crop=1)),
    "few columns": (2, 16, 40, 2, (11, 19), Geometry((7, 7), (5, 2), crop=((1, 0), (0, 2)))),
    "few columns of the adjoint": (1, 64, 16, 1, (12, 18), Geometry((7, 7), 5, crop=1)),
    "tiny": (3, 128, 40, 1, (2, 3), Geometry((4, 4), 2, crop=1)),
}


def draw_layer(name, seed=0):
    batch, inputs, channels, groups, n, geometry = LAYERS[name]
    draw = np.random.default_rng(seed).standard_normal
    shapes = (batch, groups * inputs, *n), (groups * inputs, channels, *geometry.kernel), (groups * channels,)
    x, w, bias = (draw(shape).astype(np.float32) for shape in shapes)
    size = geometry.output_size(n)
    return x, w, bias, groups, geometry, size, draw((batch, groups * channels, *size)).astype(np.float32)


def exactly(x, w, bias, groups, geometry, grad_y):
    """PyTorch's output and gradients in float64; the crop is a slice."""
    x, w, bias = (torch.from_numpy(a).double() for a in (x, w, bias))
    leaves = x.requires_grad_(), w.requires_grad_()
    terms = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": groups}
    y = CONVOLUTIONS[geometry.rank - 1](x, w, bias, **terms)
    y = y[(..., *(slice(lo, n - hi) for n, (lo, hi) in zip(y.shape[2:], geometry.crop, strict=True)))]
    y.backward(torch.from_numpy(grad_y).double())
    return y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)


def error(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("method", [engine.Method.BF16, engine.Method.POSITIONS])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_exact(name, method):
    x, w, bias, groups, geometry, size, grad_y = draw_layer(name)
    exact = exactly(x, w, bias, groups, geometry, grad_y)
    packed = engine.Packed(w, bias, geometry, groups, method=method)
    assert "bfloat16" in packed.why(len(x), geometry, x.shape[2:], size)
    y = packed.run(x, geometry, size)
    once = len(x), size, x.shape[2:], 2
    adjoint = engine.Packed(w, None, geometry, groups, adjoint=True, method=method, once=once)
    grad_x = adjoint.run(grad_y, geometry, x.shape[2:])
    grad_w = engine.weight_gradient(x, grad_y, geometry, groups, w.shape[1], method=engine.Method.BF16)
    for found, expected in zip((y, grad_x, grad_w), exact, strict=True):
        assert error(found, expected) <= 3e-7


@pytest.mark.parametrize("name", LAYERS)
def test_channels_last_is_as_exact(name):
    x, w, bias, groups, geometry, size, grad_y = draw_layer(name)
    exact = exactly(x, w, bias, groups, geometry, grad_y)
    options = {"method": engine.Method.BF16, "last": True}
    packed = engine.Packed(w, bias, geometry, groups, **options)
    assert "positions x 16 rows" in packed.why(len(x), geometry, x.shape[2:], size)
    y = packed.run_last(engine.channels_last(x), geometry, size)
    once = len(x), size, x.shape[2:], 2
    adjoint = engine.Packed(w, None, geometry, groups, adjoint=True, once=once, **options)
    grad_x = adjoint.run_last(engine.channels_last(grad_y), geometry, x.shape[2:])
    for found, expected in zip((y, grad_x), exact[:2], strict=True):
        assert error(np.moveaxis(found, -1, 1), expected) <= 3e-7
    for x_last, grad_last in (True, True), (True, False), (False, True):
        read = engine.channels_last(x) if x_last else x, engine.channels_last(grad_y) if grad_last else grad_y
        lie = {"method": engine.Method.BF16, "x_last": x_last, "grad_last": grad_last}
        grad_w = engine.weight_gradient(*read, geometry, groups, w.shape[1], 2, **lie)
        assert error(grad_w, exact[2]) <= 3e-7


@pytest.mark.parametrize("method", [engine.Method.BF16, engine.Method.POSITIONS])
@pytest.mark.parametrize("name", LAYERS)
def test_neither_batch_nor_threads_change_the_bits(name, method):
    x, w, bias, groups, geometry, size, grad_y = draw_layer(name)
    packed = engine.Packed(w, bias, geometry, groups, method=method)
    y = packed.run(x, geometry, size, threads=1)
    np.testing.assert_array_equal(packed.run(x, geometry, size, threads=3), y)
    np.testing.assert_array_equal(packed.run(x[-1:], geometry, size, threads=2), y[-1:])
    last = engine.Packed(w, bias, geometry, groups, method=engine.Method.BF16, last=True)
    y = last.run_last(engine.channels_last(x), geometry, size, threads=1)
    np.testing.assert_array_equal(last.run_last(engine.channels_last(x), geometry, size, threads=3), y)
    np.testing.assert_array_equal(last.run_last(engine.channels_last(x[-1:]), geometry, size, threads=2), y[-1:])
    grads = [
        engine.weight_gradient(x, grad_y, geometry, groups, w.shape[1], threads, engine.Method.BF16)
        for threads in (1, 2, 3)
    ]
    read = engine.channels_last(x), engine.channels_last(grad_y)
    lie = {"method": engine.Method.BF16, "x_last": True, "grad_last": True}
    last_grads = [engine.weight_gradient(*read, geometry, groups, w.shape[1], threads, **lie) for threads in (1, 2, 3)]
    for first, *others in grads, last_grads:
        for other in others:
            np.testing.assert_array_equal(other, first)


@given(st.integers(0, 2**32 - 1))
def test_small_integers_are_exact(seed):
    rng = np.random.default_rng(seed)
    geometry = Geometry(tuple(rng.integers(1, 5, 2).tolist()), tuple(rng.integers(1, 4, 2).tolist()))
    n = tuple(rng.integers(1, 20, 2).tolist())
    inputs, channels = rng.integers(8, 80, 2)
    x = rng.integers(-300, 301, (2, inputs, *n)).astype(np.float32)
    w = rng.integers(-9, 10, (inputs, channels, *geometry.kernel)).astype(np.float32)
    size = geometry.output_size(n)
    expected = engine.Packed(w, None, geometry, 1).run(x, geometry, size)
    for method in engine.Method.BF16, engine.Method.POSITIONS:
        packed = engine.Packed(w, None, geometry, 1, method=method)
        np.testing.assert_array_equal(packed.run(x, geometry, size), expected)
    last = engine.Packed(w, None, geometry, 1, method=engine.Method.BF16, last=True)
    found = last.run_last(engine.channels_last(x), geometry, size)
    np.testing.assert_array_equal(np.moveaxis(found, -1, 1), expected)


@given(st.integers(0, 2**32 - 1))
def test_gradients_of_weights_of_small_integers_are_exact(seed):
    """Sums of products of integers that bfloat16 holds are exact: any place that is read wrongly shows."""
    draw = np.random.default_rng(seed)
    rank, batch, groups = (int(draw.integers(1, most)) for most in (4, 4, 3))
    inputs, channels = (int(draw.integers(8, most)) for most in (70, 40))
    n, kernel, stride, dilation = (
        [int(draw.integers(1, most)) for _ in range(rank)] for most in (13 if rank < 3 else 6, 6, 6, 4)
    )
    crop = tuple((int(lo), int(hi)) for lo, hi in draw.integers(-2, 3, (rank, 2)))
    geometry = Geometry(tuple(kernel), tuple(stride), tuple(dilation), crop)
    axes = zip(n, kernel, stride, dilation, crop, strict=True)
    size = [(m - 1) * s + d * (k - 1) + 1 - lo - hi for m, k, s, d, (lo, hi) in axes]
    assume(min(size) > 0)
    shapes = (batch, groups * inputs, *n), (batch, groups * channels, *size)
    x, grad_y = (draw.integers(-2, 3, shape).astype(np.float32) for shape in shapes)
    exact = engine.weight_gradient(x, grad_y, geometry, groups, channels, method=engine.Method.DIRECT)
    read = engine.channels_last(x), engine.channels_last(grad_y)
    lie = {"method": engine.Method.BF16, "x_last": True, "grad_last": True}
    np.testing.assert_array_equal(engine.weight_gradient(*read, geometry, groups, channels, **lie), exact)
    found = engine.weight_gradient(x, grad_y, geometry, groups, channels, method=engine.Method.BF16)
    np.testing.assert_array_equal(found, exact)


def test_numbers_of_any_size_and_none():
    """The largest numbers stay finite, tiny ones are within what float32 rounds to zero; what is none stays so."""
    x, w, _, groups, geometry, size, _ = draw_layer("apart")
    packed = engine.Packed(w, None, geometry, groups, method=engine.Method.BF16)
    clean = packed.run(x, geometry, size)
    huge = np.finfo(np.float32).max
    one = np.zeros_like(x)
    one[0, 0, 3, 3] = huge
    small = engine.Packed(w * np.float32(1e-3), None, geometry, groups, method=engine.Method.BF16)
    expected = engine.Packed(w * np.float32(1e-3), None, geometry, groups).run(one, geometry, size)
    np.testing.assert_allclose(small.run(one, geometry, size), expected, rtol=1e-6)
    tiny = packed.run(x * np.float32(1e-37), geometry, size)
    lost = 256 * np.abs(w).max() * np.finfo(np.float32).tiny  # every term's parts below the least normal number
    np.testing.assert_allclose(tiny, clean * np.float32(1e-37), rtol=1e-6, atol=lost)
    for bad in (np.nan, np.inf):
        spoiled = x.copy()
        spoiled[1, 5, 10, 11] = bad
        y = packed.run(spoiled, geometry, size)
        reached = ~np.isfinite(y)
        assert reached[1].any()
        assert not reached[0].any()
        np.testing.assert_array_equal(y[~reached], clean[~reached])
        assert reached.sum() <= w.shape[1] * 16


def test_it_is_chosen_where_it_is_faster():
    geometry = Geometry((2, 2), 2)
    w = np.ones((128, 64, 2, 2), np.float32)
    why = engine.Packed(w, None, geometry, 1, method=engine.Method.FASTEST).why(1, geometry, (64, 64), (128, 128))
    assert "bfloat16 parts by the matrix unit" in why
    few = engine.Packed(w[:7], None, geometry, 1, method=engine.Method.FASTEST)
    assert "bfloat16" not in few.why(1, geometry, (64, 64), (128, 128))
    cpu.force("avx512")
    plain = engine.Packed(w, None, geometry, 1, method=engine.Method.FASTEST)
    assert "bfloat16" not in plain.why(1, geometry, (64, 64), (128, 128))
