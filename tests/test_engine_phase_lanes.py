"""The engine's lanes along phases: exact, the same bits however a call is cut, and what they are not used for."""

from __future__ import annotations

import numpy as np
import pytest

from upscore import cpu, engine, reference
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")

TOLERANCE = {np.float32: 1e-6, np.float64: 1e-14}

# name: batch, channels in and out of a group, groups, input size, geometry; channels last there is one group.
LAYERS = {
    "fcn-32s": (1, 5, 3, 1, (5, 7), Geometry(64, 32, crop=((19, 19), (19, 19)))),
    "lines of one vector": (2, 3, 7, 1, (6, 29), Geometry((5, 32), (2, 16), crop=((1, 2), (8, 8)))),
    "rows that begin on vectors": (1, 4, 2, 1, (3, 5), Geometry((3, 32), (2, 32), crop=((0, 1), (0, 0)))),
    "many channels": (2, 300, 1, 1, (2, 3), Geometry((6, 63), (3, 32), crop=((-1, 2), (5, -7)))),
    "a panel in pieces": (1, 400, 1, 1, (3, 140), Geometry((2, 16), (1, 16), crop=((1, -2), (3, 40)))),
    "groups": (3, 2, 3, 2, (4, 6), Geometry((4, 96), (3, 48), crop=((2, 0), (50, 1)))),
    "stride larger than the kernel": (1, 3, 2, 1, (4, 3), Geometry((2, 16), (5, 16), crop=((0, -3), (-4, 9)))),
    "dilated": (1, 6, 2, 1, (7, 5), Geometry((3, 32), (2, 16), (3, 1), crop=((4, 1), (0, 21)))),
    "one axis": (2, 20, 1, 1, (41,), Geometry(1024, 256, crop=((384, 384),))),
    "a long row in pieces": (1, 1, 2, 1, (7013,), Geometry(32, 16, crop=((8, 8),))),
    "three axes": (2, 4, 3, 1, (3, 4, 5), Geometry((4, 3, 32), (2, 3, 16), crop=((1, 1), (0, 2), (8, 7)))),
    "only zeros": (1, 2, 2, 1, (2, 2), Geometry((2, 16), (3, 16), crop=((-40, 0), (-30, 4)))),
    "more than 12 MiB": (1, 1, 5, 1, (50, 60), Geometry((16, 32), (16, 16), crop=((0, 0), (8, 8)))),
}


def layer(name, dtype):
    draw = np.random.default_rng(1).standard_normal
    batch, channels, out, groups, n, geometry = LAYERS[name]
    x = draw((batch, groups * channels, *n)).astype(dtype)
    w, bias = draw((groups * channels, out, *geometry.kernel)).astype(dtype), draw((groups * out,)).astype(dtype)
    return x, w, bias, geometry, groups, geometry.output_size(n)


def packed_along_phases(w, bias, geometry, groups, x, size, last=False, method=engine.Method.DIRECT):
    packed = engine.Packed(w, bias, geometry, groups, method=method, last=last)
    assert "lanes along phases" in packed.why(len(x), geometry, x.shape[2:], size)
    return packed


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", LAYERS)
def test_exact_and_the_same_bits(name, isa, dtype):
    cpu.force(isa)
    x, w, bias, geometry, groups, size = layer(name, dtype)
    packed = packed_along_phases(w, bias, geometry, groups, x, size)
    y = packed.run(x, geometry, size)
    exact = reference.scatter(*(a.astype(np.float64) for a in (x, w, bias)), geometry=geometry, groups=groups)
    assert np.linalg.norm(y - exact) <= TOLERANCE[dtype] * np.linalg.norm(exact)
    for threads in (1, 3):
        np.testing.assert_array_equal(packed.run(x[-1:], geometry, size, threads=threads), y[-1:])
    without = packed_along_phases(w, None, geometry, groups, x, size).run(x, geometry, size)
    np.testing.assert_array_equal(without + bias.reshape(-1, *(1,) * geometry.rank), y)


@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if layer[3] == 1 and layer[-1].rank > 1])
def test_channels_last_gives_the_same_bits(name, isa):
    cpu.force(isa)
    x, w, bias, geometry, groups, size = layer(name, np.float32)
    expected = packed_along_phases(w, bias, geometry, groups, x, size).run(x, geometry, size)
    packed = packed_along_phases(w, bias, geometry, groups, x, size, last=True)
    for threads in (1, 3):
        y = packed.run_last(engine.channels_last(x), geometry, size, threads=threads)
        np.testing.assert_array_equal(np.moveaxis(y, -1, 1), expected)
    np.testing.assert_array_equal(packed.run(x, geometry, size), expected)


def test_channels_last_vectors_may_begin_at_any_channel():
    """Phases times channels fill vectors where neither does."""
    draw = np.random.default_rng(2).standard_normal
    geometry = Geometry((3, 8), (2, 4), crop=((0, 1), (3, 2)))
    x, w, bias = (draw(shape).astype(np.float32) for shape in ((2, 5, 6, 9), (5, 12, 3, 8), (12,)))
    size = geometry.output_size((6, 9))
    packed = packed_along_phases(w, bias, geometry, 1, x, size, last=True)
    y = np.moveaxis(packed.run_last(engine.channels_last(x), geometry, size), -1, 1)
    exact = reference.scatter(*(a.astype(np.float64) for a in (x, w, bias)), geometry=geometry, groups=1)
    assert np.linalg.norm(y - exact) <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("last", [False, True])
def test_fastest_for_dense_upscores(last):
    x, w, bias, geometry, groups, size = layer("fcn-32s", np.float32)
    packed_along_phases(w, bias, geometry, groups, x, size, last=last, method=engine.Method.FASTEST)


@pytest.mark.parametrize(
    ("channels", "geometry"),
    [(64, Geometry(32, 16)), (8, Geometry(33, 32)), (8, Geometry(34, 17)), (8, Geometry(32, 16, 3))],
    ids=["minimal filtering saves more", "kernel barely over the stride", "no whole vectors", "dilated"],
)
def test_other_layers_are_computed_otherwise(channels, geometry):
    w = np.ones((channels, 3, *geometry.kernel), np.float32)
    packed = engine.Packed(w, None, geometry, 1, method=engine.Method.FASTEST)
    assert "lanes along phases" not in packed.why(1, geometry, (9,), geometry.output_size((9,)))
