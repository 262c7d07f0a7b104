"""The engine's minimal filtering: exact, where it is faster, and how far it spreads what is no number."""

from __future__ import annotations

import numpy as np
import pytest

from upscore import cpu, engine, reference
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")

# name: channels in and out, input size, geometry. Windows of two and of three inputs, phases of one tap, taps that
# are summed as they are.
FILTERED = {
    "two by two": (48, 36, (14, 27), Geometry((4, 4), 2, crop=1)),
    "three by three": (40, 45, (19, 22), Geometry((3, 3), 1, crop=((1, 0), (2, 1)))),
    "single taps": (64, 64, (26, 33), Geometry((3, 3), 2, crop=((1, 0), (0, 1)))),
    "three and two": (83, 50, (17, 30), Geometry((6, 3), (2, 2), crop=((2, 3), (0, 0)))),
    "one axis of five taps": (48, 72, (24, 59), Geometry((5, 4), (1, 2), crop=((2, 2), (1, 1)))),
    "one axis": (64, 24, (320,), Geometry(16, 8, crop=4)),
    "three axes": (96, 32, (12, 9, 10), Geometry((4, 3, 4), (2, 1, 2), crop=1)),
}


def without_matrix_unit():
    """Its products of bfloat16 parts are faster still, for some layers."""
    if cpu.active() == "amx":
        cpu.force("avx512")


def filtered_layer(name, draw):
    without_matrix_unit()
    channels, out, n, geometry = FILTERED[name]
    x, w, bias = draw((3, channels, *n)), draw((channels, out, *geometry.kernel)), draw((out,))
    packed = engine.Packed(w, bias, geometry, 1, method=engine.Method.FASTEST)
    return x, w, bias, geometry, packed


@pytest.mark.parametrize("name", FILTERED)
def test_minimal_filtering_where_it_is_faster(name):
    rng = np.random.default_rng(3)
    x, w, bias, geometry, packed = filtered_layer(name, lambda shape: rng.standard_normal(shape).astype(np.float32))
    n, size = x.shape[2:], geometry.output_size(x.shape[2:])
    assert "minimal filtering" in packed.why(3, geometry, n, size)
    assert "minimal filtering" not in engine.Packed(w, bias, geometry, 1).why(3, geometry, n, size)
    before = packed._plan.packed_bytes
    y = packed.run(x, geometry, size)
    assert before < packed._plan.packed_bytes < (1 + 8.1) * before
    wide = [a.astype(np.float64) for a in (x, w, bias)]
    exact = reference.scatter(*wide, geometry=geometry, groups=1)
    assert np.linalg.norm(y - exact) <= 1e-6 * np.linalg.norm(exact)
    # Neither the batch nor an image's place in it changes the bits.
    np.testing.assert_array_equal(packed.run(x[2:], geometry, size), y[2:])


@pytest.mark.parametrize("name", FILTERED)
def test_minimal_filtering_of_small_integers_is_exact(name):
    rng = np.random.default_rng(4)
    draw = lambda shape: rng.integers(-8, 9, shape).astype(np.float32)  # noqa: E731
    x, w, bias, geometry, packed = filtered_layer(name, draw)
    size = geometry.output_size(x.shape[2:])
    expected = engine.Packed(w, bias, geometry, 1).run(x, geometry, size)
    np.testing.assert_array_equal(packed.run(x, geometry, size), expected)


@pytest.mark.parametrize("name", FILTERED)
def test_minimal_filtering_spreads_nan_less_than_three_strides(name):
    rng = np.random.default_rng(5)
    x, _, _, geometry, packed = filtered_layer(name, lambda shape: rng.standard_normal(shape).astype(np.float32))
    size = geometry.output_size(x.shape[2:])
    clean = packed.run(x, geometry, size)
    at = tuple(n // 2 for n in x.shape[2:])
    x[(1, 5, *at)] = np.nan
    y = packed.run(x, geometry, size)
    assert np.isnan(y).any()
    near = np.zeros(y.shape, bool)
    ranges = zip(at, geometry.kernel, geometry.stride, geometry.crop, strict=True)
    box = [slice(max(0, i * s - lo - 3 * s + 1), i * s - lo + k + 3 * s - 1) for i, k, s, (lo, _) in ranges]
    near[(1, slice(None), *box)] = True
    np.testing.assert_array_equal(y[~near], clean[~near])


def test_minimal_filtering_not_for_tiny_maps():
    without_matrix_unit()
    geometry = Geometry((4, 4), 2, crop=1)
    w = np.ones((64, 64, 4, 4), np.float32)
    packed = engine.Packed(w, None, geometry, 1, method=engine.Method.FASTEST)
    assert "minimal filtering" not in packed.why(64, geometry, (4, 4), (8, 8))
    assert "minimal filtering" in packed.why(1, geometry, (64, 64), (128, 128))


def assert_same_bits_channels_last(seed, inputs, channels, n, geometry):
    draw = np.random.default_rng(seed).standard_normal
    shapes = (2, inputs, *n), (inputs, channels, *geometry.kernel), (channels,)
    x, w, bias = (draw(shape).astype(np.float32) for shape in shapes)
    size = geometry.output_size(n)
    plain = engine.Packed(w, bias, geometry, 1, method=engine.Method.FILTERED)
    assert "minimal filtering" in plain.why(2, geometry, n, size)
    expected = plain.run(x, geometry, size)
    packed = engine.Packed(w, bias, geometry, 1, method=engine.Method.FILTERED, last=True)
    for threads in (1, 3):
        y = packed.run_last(engine.channels_last(x), geometry, size, threads=threads)
        np.testing.assert_array_equal(np.moveaxis(y, -1, 1), expected)


@pytest.mark.parametrize("channels", [64, 36, 1])
@pytest.mark.parametrize("name", FILTERED)
def test_minimal_filtering_channels_last_gives_the_same_bits(name, channels):
    """Lanes along channels where these fill vectors; elsewhere all channels of a tile are written at once."""
    inputs, _, n, geometry = FILTERED[name]
    assert_same_bits_channels_last(6, inputs, channels, n, geometry)


# Channels in and out, input size, geometry: so many sums of a set that phases of the leading axes are taken in turn.
STRIPS = {
    "two axes": (6, 21, (7, 8), Geometry(16, 8, crop=((3, 0), (8, -1)))),
    "phases of a row in two tiles": (5, 33, (5, 6), Geometry((4, 32), (2, 16), crop=((0, 5), (21, 2)))),
    "three axes": (3, 9, (4, 5, 6), Geometry((8, 6, 16), (4, 2, 8), crop=((3, 2), (1, 0), (0, 9)))),
    "one axis of five taps": (4, 90, (6, 9), Geometry((20, 16), (4, 8), crop=((9, 2), (0, 3)))),
}


@pytest.mark.usefixtures("restore_engine_settings")
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", STRIPS)
def test_minimal_filtering_channels_last_of_many_phases(name, isa):
    cpu.force(isa)
    assert_same_bits_channels_last(9, *STRIPS[name])


@pytest.mark.parametrize("size", [(5, 7), (23, 19), (2, 90)])
@pytest.mark.parametrize("groups", [1, 2])
def test_minimal_filtering_turns_inputs_channels_last_by_itself(size, groups):
    """Rows that several sets of outputs read, cut by borders and by tasks."""
    rng = np.random.default_rng(8)
    geometry = Geometry((5, 6), (2, 3), crop=((1, 2), (4, 0)))
    x = rng.standard_normal((5, 34, *size)).astype(np.float32)
    w = rng.standard_normal((34, 20 // groups, 5, 6)).astype(np.float32)
    output = geometry.output_size(size)
    expected = engine.Packed(w, None, geometry, groups, method=engine.Method.FILTERED).run(x, geometry, output)
    packed = engine.Packed(w, None, geometry, groups, method=engine.Method.FILTERED, last=True)
    assert packed._plan.channels_last(5, [1, *size], [1, *output], [0, 1, 4], 2) == (True, groups == 1)
    for threads in (1, 2):
        y = packed.run_last(engine.channels_last(x), geometry, output, threads)
        np.testing.assert_array_equal(np.moveaxis(y, -1, 1), expected)


def integers_too(rng):
    """Ways to draw an array's numbers, and whether sums and halves of them are exact."""
    return (rng.standard_normal, False), (lambda shape: rng.integers(-4, 5, shape), True)


def assert_alike(filtered, plain, exact):
    if exact:
        np.testing.assert_array_equal(filtered, plain)
        return
    assert (filtered != plain).any(), "the filtered way was not taken"
    difference = np.linalg.norm(filtered.astype(float) - plain) / np.linalg.norm(plain)
    assert difference <= (1e-6 if plain.dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [64, 21])
@pytest.mark.parametrize("name", FILTERED)
def test_weight_gradient_by_minimal_filtering(name, channels, dtype):
    rng = np.random.default_rng(7)
    inputs, _, n, geometry = FILTERED[name]
    for draw, exact in integers_too(rng):
        x = draw((2, inputs, *n)).astype(dtype)
        grad_y = draw((2, channels, *geometry.output_size(n))).astype(dtype)

        def gradient(method, threads, x=x, grad_y=grad_y):
            return engine.weight_gradient(x, grad_y, geometry, 1, channels, threads, method)

        plain, filtered = gradient(engine.Method.DIRECT, 1), gradient(engine.Method.FILTERED, 1)
        assert_alike(filtered, plain, exact)
        np.testing.assert_array_equal(gradient(engine.Method.FILTERED, 3), filtered)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [64, 21])
@pytest.mark.parametrize("name", FILTERED)
def test_input_gradient_by_minimal_filtering(name, channels, dtype):
    rng = np.random.default_rng(8)
    _, outputs, n, geometry = FILTERED[name]
    size = geometry.output_size(n)

    def gradient(method, threads=1, last=False):
        once = 2, size, n, threads
        packed = engine.Packed(w, None, geometry, 1, adjoint=True, method=method, last=last, once=once)
        if last:
            return np.moveaxis(packed.run_last(engine.channels_last(grad_y), geometry, n, threads), -1, 1)
        return packed.run(grad_y, geometry, n, threads=threads)

    for draw, exact in integers_too(rng):
        w, grad_y = (draw(s).astype(dtype) for s in ((channels, outputs, *geometry.kernel), (2, outputs, *size)))
        plain, filtered = gradient(engine.Method.DIRECT), gradient(engine.Method.FILTERED)
        assert_alike(filtered, plain, exact)
        np.testing.assert_array_equal(gradient(engine.Method.FILTERED, threads=3), filtered)
        np.testing.assert_array_equal(gradient(engine.Method.FILTERED, threads=2, last=True), filtered)


def test_input_gradient_by_minimal_filtering_serves_the_call_that_it_was_packed_for_alone():
    geometry = Geometry((4, 4), 2, crop=1)
    w, grad_y = np.ones((16, 16, 4, 4), np.float32), np.ones((1, 16, 20, 20), np.float32)
    once = 1, (20, 20), (10, 10), 1
    packed = engine.Packed(w, None, geometry, 1, adjoint=True, method=engine.Method.FILTERED, once=once)
    assert packed.run(grad_y, geometry, (10, 10)).max() == 16 * 16
    with pytest.raises(ValueError, match="packed for"):
        packed.run(np.concatenate([grad_y, grad_y]), geometry, (10, 10))


def test_channels_that_do_not_mix_are_never_filtered():
    """There are no products to save, and channels last have the same bits."""
    geometry = Geometry.from_padding((5, 4), stride=(3, 2), padding=1)
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(s) for s in ((5, 1, 5, 4), (2, 5, 6, 7)))
    size = geometry.output_size((6, 7))
    packed = engine.Packed(w, None, geometry, 5, method=engine.Method.FILTERED)
    assert "minimal filtering" not in packed.why(2, geometry, (6, 7), size)
    last = engine.Packed(w, None, geometry, 5, method=engine.Method.FILTERED, last=True)
    y = last.run_last(engine.channels_last(x), geometry, size)
    np.testing.assert_array_equal(np.moveaxis(y, -1, 1), packed.run(x, geometry, size))
