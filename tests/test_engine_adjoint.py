"""The adjoint where its input has few channels: the kernel's rows are read as they lie, whatever the stride."""

from __future__ import annotations

import numpy as np
import pytest

import upscore
from upscore import cpu, engine, reference
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")

# channels in (of the layer: the many), out, groups, input size, geometry. Kernels that are cut into several sums, short
# rows, channels that do not fill vectors, borders on all sides, steps between the kernel's rows.
NARROW = {
    "inverse stft": (47, 1, 1, (21,), Geometry(1024, 256)),
    "long rows": (50, 3, 1, (13, 37), Geometry((3, 9), (2, 3), crop=((1, 2), (4, 5)))),
    "short rows": (64, 2, 1, (9, 11), Geometry((5, 4), 2, crop=((2, 1), (0, 3)))),
    "groups": (96, 2, 2, (7, 20), Geometry((3, 12), (1, 4), crop=4)),
    "three axes": (32, 1, 1, (5, 6, 20), Geometry((2, 3, 4), (1, 2, 2), dilation=(3, 2, 1), crop=1)),
}


# Layers whose taps are the terms of the matrix unit's products: in bands of rows and of columns, in several sums.
TAPS = {
    "taps of rows": (70, 3, 1, (33, 50), Geometry((5, 4), (2, 3), crop=((1, 2), (-1, 3)))),
    "taps in groups": (144, 2, 3, (9, 41), Geometry((4, 6), 2, crop=((2, 1), (0, 3)))),
    "taps of one axis": (48, 1, 1, (2100,), Geometry(31, 4, crop=((13, -5),))),
    "taps of three axes": (64, 2, 1, (4, 5, 37), Geometry((2, 3, 4), (1, 2, 2), dilation=(2, 1, 3), crop=1)),
    "taps in several sums": (32, 8, 1, (7, 64), Geometry((9, 9), (2, 3), crop=((4, 3), (0, 4)))),
    "taps of a kernel smaller than the stride": (64, 3, 1, (12, 30), Geometry((3, 3), (4, 5), crop=((-2, 0), (1, -7)))),
}


class Few:
    """An input gradient of few output channels, first from channels that are first, and by one thread."""

    def __init__(self, layer, dtype):
        channels, few, self.groups, self.n, self.geometry = layer
        self.size = self.geometry.output_size(self.n)
        rng = np.random.default_rng(0)
        self.w, self.grad_y = (
            rng.standard_normal(s).astype(dtype)
            for s in ((channels, few, *self.geometry.kernel), (3, few * self.groups, *self.size))
        )
        self.ours = self.run(1)
        w, grad_y, x = self.w.astype(float), self.grad_y.astype(float), np.zeros((3, channels, *self.n))
        self.exact = reference.gradients(grad_y, x, w, geometry=self.geometry, groups=self.groups)[0]

    def packed(self, threads, last=False):
        once = (3, self.size, self.n, threads)
        return engine.Packed(self.w, None, self.geometry, self.groups, adjoint=True, last=last, once=once)

    def why(self, threads, last=False):
        return self.packed(threads, last).why(3, self.geometry, self.size, self.n)

    def run(self, threads):
        return self.packed(threads).run(self.grad_y, self.geometry, self.n, threads=threads)

    def run_last(self, threads):
        grad_y = engine.channels_last(self.grad_y)
        y = self.packed(threads, last=True).run_last(grad_y, self.geometry, self.n, threads=threads)
        return np.moveaxis(y, -1, 1)

    def error(self, ours):
        return np.linalg.norm(ours - self.exact) / np.linalg.norm(self.exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", NARROW)
def test_few_channels(name, isa, dtype):
    cpu.force(isa)
    layer = Few(NARROW[name], dtype)
    assert "few channels" in layer.why(1)
    assert layer.error(layer.ours) <= (1e-6 if dtype == np.float32 else 1e-14)
    np.testing.assert_array_equal(layer.run(3), layer.ours)
    if (name, isa, dtype) == ("long rows", "amx", np.float32):  # turning inputs would take longer than it saves
        assert layer.why(2, last=True) != layer.why(2)
        assert layer.error(layer.run_last(2)) <= 1e-6
    else:
        np.testing.assert_array_equal(layer.run_last(2), layer.ours)


@pytest.mark.skipif("amx" not in cpu.available(), reason="hardware: needs a matrix unit (AMX)")
@pytest.mark.parametrize("name", TAPS)
def test_taps_as_terms_of_the_matrix_unit(name):
    layer = Few(TAPS[name], np.float32)
    assert "by the matrix unit, whose terms are the" in layer.why(1)
    assert layer.error(layer.ours) <= 5e-7
    np.testing.assert_array_equal(layer.run(3), layer.ours)
    assert layer.error(layer.run_last(2)) <= 1e-6


def test_few_channels_with_a_bias():
    """A convolution of one channel, as the first of a network."""
    rng = np.random.default_rng(1)
    x, w, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, 1, 40, 70), (24, 1, 9, 9), (24,)))
    ours = upscore.conv(x, w, bias, stride=2, padding=3)
    plain = upscore.conv(x, w, stride=2, padding=3)
    np.testing.assert_allclose(ours, plain + bias.reshape(-1, 1, 1), rtol=0, atol=1e-6 * np.abs(plain).max())


# channels, input size, geometry: channels do not mix. Rows that vectors run across, taps far apart, strides that leave
# inputs unread, borders without inputs, several tiles.
CHANNELWISE = {
    "bilinear": (5, (9, 13), Geometry((4, 4), 2, crop=1)),
    "stride 1": (3, (30, 7), Geometry((3, 5), 1, crop=((1, 0), (2, 2)))),
    "kernel smaller than the stride": (4, (6, 9), Geometry((2, 1), (3, 2), crop=((0, -1), (0, -1)))),
    "far apart": (2, (7, 20), Geometry((3, 2), (2, 3), dilation=(5, 4), crop=((3, 1), (2, 0)))),
    "many rows": (2, (900, 6), Geometry((3, 3), 3)),
    "long rows": (2, (3, 1500), Geometry((3, 4), (1, 2), crop=1)),
    "long rows, two lines that begin outside": (2, (3, 157), Geometry((1, 5), (1, 2), crop=((0, 0), (2, 2)))),
    "three axes": (3, (4, 5, 6), Geometry((4, 3, 2), (2, 1, 2), crop=1)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", CHANNELWISE)
def test_channels_that_do_not_mix(name, isa, dtype):
    cpu.force(isa)
    channels, n, geometry = CHANNELWISE[name]
    size = geometry.output_size(n)
    rng = np.random.default_rng(2)
    x, w, grad_y, bias = (
        rng.standard_normal(s).astype(dtype)
        for s in ((3, channels, *n), (channels, 1, *geometry.kernel), (3, channels, *size), (channels,))
    )
    wide = (a.astype(float) for a in (grad_y, x, w))
    exact_x, exact_w, _ = reference.gradients(*wide, geometry=geometry, groups=channels)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    packed = engine.Packed(w, bias, geometry, channels, adjoint=True)
    for threads in (1, 3):
        ours = packed.run(grad_y, geometry, n, threads=threads).astype(float)
        ours -= bias.astype(float).reshape(-1, *[1] * len(n))
        assert np.linalg.norm(ours - exact_x) <= 2 * tolerance * np.linalg.norm(exact_x)
        ours = engine.weight_gradient(x, grad_y, geometry, channels, 1, threads)
        assert np.linalg.norm(ours - exact_w) <= tolerance * np.linalg.norm(exact_w)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("size", "channels", "geometry"),
    [
        ((9, 11), 21, Geometry((4, 5), (2, 3), crop=((1, 2), (3, 0)))),
        ((1, 1), 8, Geometry((3, 2), 1)),
        ((6, 7), 64, Geometry((3, 3), (2, 1), dilation=(1, 4), crop=((2, 0), (5, 3)))),
        ((3, 4, 5), 40, Geometry((2, 3, 4), (3, 1, 2), crop=((-1, -2), (1, 1), (0, 2)))),
        ((33,), 17, Geometry(9, 4, crop=((0, -3),))),
        ((5, 3), 16, Geometry((1, 1), 2, crop=((0, 0), (1, 1)))),
    ],
)
def test_input_gradients_channels_last_of_channels_that_do_not_mix(size, channels, geometry, dtype):
    """Lanes along channels, whose last vectors reach into the next position, and behind the end of no array."""
    rng = np.random.default_rng(7)
    output = geometry.output_size(size)
    w = rng.standard_normal((channels, 1, *geometry.kernel)).astype(dtype)
    grad_y = rng.standard_normal((3, channels, *output)).astype(dtype)
    bias = rng.standard_normal(channels).astype(dtype)
    exact = engine.Packed(w.astype(np.float64), bias.astype(np.float64), geometry, channels, adjoint=True)
    expected = exact.run(grad_y.astype(np.float64), geometry, size)
    for isa in cpu.available():
        cpu.force(isa)
        packed = engine.Packed(w, bias, geometry, channels, adjoint=True, method=engine.Method.FASTEST, last=True)
        one, three = (packed.run_last(engine.channels_last(grad_y), geometry, size, threads) for threads in (1, 3))
        np.testing.assert_array_equal(one, three)
        np.testing.assert_array_equal(packed.run(grad_y, geometry, size), np.moveaxis(one, -1, 1))
        error = np.linalg.norm(np.moveaxis(one, -1, 1) - expected)
        assert error <= (1e-6 if dtype == np.float32 else 1e-14) * np.linalg.norm(expected)
        if 2 * channels >= 64 // dtype().itemsize:
            assert "channels of one position" in packed.why(3, geometry, output, size)
