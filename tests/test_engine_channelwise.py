"""Channels that do not mix, row by row: exact, the same bits however a call is cut and wherever its output lies."""

from __future__ import annotations

import numpy as np
import pytest

from upscore import cpu, engine, reference
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")

TOLERANCE = {np.float32: 1e-6, np.float64: 1e-14}

# name: batch, channels, input size, geometry. Rows are so long that they are taken with the widest vectors.
LAYERS = {
    "fcn-8s": (2, 3, (5, 41), Geometry((16, 16), 8, crop=((4, 3), (5, 2)))),
    "fcn-32s": (1, 3, (3, 9), Geometry(64, 32, crop=((19, 19), (19, 18)))),
    "one tap": (1, 2, (4, 150), Geometry((2, 2), 2)),
    "stride larger than the kernel": (2, 2, (3, 70), Geometry(2, (3, 5), crop=((-1, 2), (-9, 4)))),
    "stride 3": (1, 2, (7, 160), Geometry((5, 7), 3, crop=((2, 0), (1, -2)))),
    "stride 6, dilated": (1, 2, (4, 90), Geometry(4, (2, 6), (1, 3), crop=((1, 0), (2, 7)))),
    "stride 12, nine taps": (1, 2, (6, 61), Geometry((7, 26), (3, 12), crop=((2, 1), (13, 0)))),
    "one axis, in stretches": (2, 2, (30_011,), Geometry(9, 5, crop=((3, 4),))),
    "three axes": (1, 2, (2, 3, 170), Geometry((3, 2, 4), (2, 1, 4), crop=((1, 0), (0, 1), (2, 1)))),
    "rows of one phase, down": (1, 2, (5, 140), Geometry((1, 6), (4, 3), crop=((0, 2), (0, 1)))),
    "few inputs of many phases": (3, 2, (2, 1), Geometry((3, 700), (1, 600), crop=((1, 1), (37, 5)))),
    "only the bias": (1, 2, (2, 40), Geometry(2, 4, crop=((-30, -30), (200, -300)))),
    "more than 12 MiB, odd rows": (2, 2, (100, 251), Geometry((8, 9), 8, crop=((3, 1), (2, 0)))),
}


def layer(name, dtype):
    draw = np.random.default_rng(1).standard_normal
    batch, channels, n, geometry = LAYERS[name]
    x = draw((batch, channels, *n)).astype(dtype)
    w, bias = draw((channels, 1, *geometry.kernel)).astype(dtype), draw((channels,)).astype(dtype)
    return x, w, bias, geometry, geometry.output_size(n)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", LAYERS)
def test_exact_and_the_same_bits(name, isa, dtype):
    cpu.force(isa)
    x, w, bias, geometry, size = layer(name, dtype)
    packed = engine.Packed(w, bias, geometry, x.shape[1], method=engine.Method.FASTEST)
    assert "every output row is computed along its lanes" in packed.why(len(x), geometry, x.shape[2:], size)
    y = packed.run(x, geometry, size)
    exact = reference.scatter(*(a.astype(np.float64) for a in (x, w, bias)), geometry=geometry, groups=x.shape[1])
    assert np.linalg.norm(y - exact) <= TOLERANCE[dtype] * np.linalg.norm(exact)
    for threads in (1, 3):
        np.testing.assert_array_equal(packed.run(x[-1:], geometry, size, threads=threads), y[-1:])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if layer[-1].rank > 1])
def test_channels_last(name, isa, dtype):
    """All channels of a row of pixels are one line of numbers, whose weights recur with the channels."""
    cpu.force(isa)
    x, w, bias, geometry, size = layer(name, dtype)
    channels, rng = 9, np.random.default_rng(3)
    x = rng.standard_normal((x.shape[0], channels, *x.shape[2:])).astype(dtype)
    w, bias = rng.standard_normal((channels, 1, *geometry.kernel)).astype(dtype), rng.standard_normal(9).astype(dtype)
    packed = engine.Packed(w, bias, geometry, channels, method=engine.Method.FASTEST, last=True)
    assert "every output row is computed along its lanes" in packed.why(len(x), geometry, x.shape[2:], size)
    y = packed.run_last(engine.channels_last(x), geometry, size)
    exact = reference.scatter(*(a.astype(np.float64) for a in (x, w, bias)), geometry=geometry, groups=channels)
    assert np.linalg.norm(np.moveaxis(y, -1, 1) - exact) <= TOLERANCE[dtype] * np.linalg.norm(exact)
    for threads in (1, 3):
        np.testing.assert_array_equal(packed.run_last(engine.channels_last(x[-1:]), geometry, size, threads), y[-1:])


@pytest.mark.parametrize("kind", ["alike", "apart", "almost"])
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", ["fcn-8s", "fcn-32s", "more than 12 MiB, odd rows"])
def test_separable_kernels_channels_last(name, isa, kind):
    """Input rows are multiplied along the last axis once: where a kernel is a product of lines, and only there."""
    cpu.force(isa)
    batch, _, n, geometry = LAYERS[name]
    rng, channels = np.random.default_rng(4), 21
    down = rng.integers(0, 5, (1 if kind == "alike" else channels, geometry.kernel[0]))
    down[:, -1] = 1  # others are its multiples
    across = rng.integers(-512, 513, (channels, geometry.kernel[1])) / 256
    across[1] = 0
    w = (down[:, :, None] * across[:, None]).astype(np.float32)[:, None]
    if kind == "almost":
        w[-1, 0, 2, 3] = np.nextafter(w[-1, 0, 2, 3], np.float32(9))
    x, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((batch, channels, *n), channels))
    packed = engine.Packed(w, bias, geometry, channels, method=engine.Method.FASTEST, last=True)
    size = geometry.output_size(n)
    assert ("once for all output rows" in packed.why(batch, geometry, n, size)) == (kind != "almost")
    y = packed.run_last(engine.channels_last(x), geometry, size)
    exact = reference.scatter(*(a.astype(np.float64) for a in (x, w, bias)), geometry=geometry, groups=channels)
    assert np.linalg.norm(np.moveaxis(y, -1, 1) - exact) <= 1e-6 * np.linalg.norm(exact)
    for threads in (1, 3):
        np.testing.assert_array_equal(packed.run_last(engine.channels_last(x[-1:]), geometry, size, threads), y[-1:])


@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("begin", [1, 3, 4, 7, 15])
def test_an_output_may_begin_anywhere(begin, isa):
    cpu.force(isa)
    x, w, bias, geometry, size = layer("more than 12 MiB, odd rows", np.float32)
    packed = engine.Packed(w, bias, geometry, x.shape[1], method=engine.Method.FASTEST)
    expected = packed.run(x, geometry, size)
    around = np.full(expected.size + begin + 16, np.float32(7))
    out = around[begin:-16].reshape(expected.shape)
    packed.run(x, geometry, size, out=out)
    np.testing.assert_array_equal(out, expected)
    assert (around[:begin] == 7).all()
    assert (around[-16:] == 7).all()


def test_bytes_that_lie_between_numbers():
    """Nothing can be written past the caches where numbers are not aligned."""
    x, w, bias, geometry, size = layer("more than 12 MiB, odd rows", np.float32)
    packed = engine.Packed(w, bias, geometry, x.shape[1], method=engine.Method.FASTEST)
    expected = packed.run(x, geometry, size)
    out = np.zeros(expected.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(expected.shape)
    packed.run(x, geometry, size, out=out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("isa", cpu.available())
def test_short_rows_are_left_to_interleaved_phases(isa):
    """Of one layer long rows are taken, short ones are not: both are exact, with the same weights."""
    cpu.force(isa)
    draw = np.random.default_rng(2).standard_normal
    geometry, w = Geometry((4, 4), 2, crop=1), draw((3, 1, 4, 4)).astype(np.float32)
    packed = engine.Packed(w, None, geometry, 3, method=engine.Method.FASTEST)
    ways = []
    for wide in (5, 400):
        x = draw((2, 3, 6, wide)).astype(np.float32)
        size = geometry.output_size(x.shape[2:])
        exact = reference.scatter(x.astype(np.float64), w.astype(np.float64), geometry=geometry, groups=3)
        assert np.linalg.norm(packed.run(x, geometry, size) - exact) <= 1e-6 * np.linalg.norm(exact)
        ways.append("every output row" in packed.why(2, geometry, x.shape[2:], size))
    assert ways == [False, True]
