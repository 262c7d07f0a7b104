"""The engine's folding: exact, where it is faster, the same bits however a call is cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from upscore import cpu, engine, reference
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")

TOLERANCE = {np.float32: 1e-6, np.float64: 1e-14}

# name: batch, channels in and out of a group, groups, input size, geometry.
FOLDED = {
    "small map": (3, 130, 4, 1, (5, 7), Geometry((4, 3), (2, 3), crop=((1, 0), (0, 2)))),
    "several images in a task": (19, 70, 3, 2, (2, 3), Geometry((5, 3), (2, 1), crop=((2, 1), (-1, 3)))),
    "more than one reduction": (2, 1200, 2, 1, (3, 4), Geometry((3, 4), 1, crop=((0, 1), (2, 0)))),
    "rows in pieces": (1, 300, 2, 1, (2, 417), Geometry((3, 5), (1, 2), crop=((1, 1), (-3, 4)))),
    "rows of several pieces": (2, 96, 1, 1, (37, 21), Geometry((5, 7), (3, 2), crop=((0, -2), (3, 3)))),
    "folded in several steps": (1, 40, 3, 1, (9, 8, 7), Geometry((7, 6, 5), (3, 2, 2), crop=((2, 0), (1, 1), (0, 4)))),
    "stride larger than the kernel": (1, 64, 5, 1, (6, 9), Geometry((2, 3), (3, 5), crop=((0, -2), (1, 0)))),
    "dilated": (2, 50, 6, 1, (8, 5), Geometry((3, 4), (2, 3), (3, 2), crop=((4, 1), (0, 5)))),
    "one axis, many channels": (2, 200, 37, 1, (11,), Geometry(9, 4, crop=((3, 2),))),
    "crop beyond the first inputs": (1, 33, 2, 1, (12, 10), Geometry((3, 2), 2, crop=((7, 5), (6, 3)))),
    "bands of rows": (2, 9, 1, 2, (141, 129), Geometry((4, 5), 2, crop=((1, 0), (2, 3)))),
    "bands of planes": (1, 10, 2, 1, (61, 14, 17), Geometry((3, 4, 3), (2, 1, 2), crop=((2, 0), (0, 1), (1, 1)))),
    "bands of one axis": (2, 12, 3, 1, (9001,), Geometry(9, 4, crop=((5, -6),))),
    "bands of a crop": (1, 8, 1, 1, (230, 101), Geometry((7, 3), (3, 1), crop=((-8, 31), (4, -3)))),
    "lines": (2, 24, 1, 2, (19, 53), Geometry((4, 5), 2, crop=((1, 0), (2, 3)))),
    "lines of several channels": (1, 20, 3, 1, (7, 130), Geometry((3, 5), (2, 3), crop=((-1, 2), (1, 0)))),
    "lines, copied": (2, 90, 1, 1, (16, 64), Geometry((3, 3), 2, crop=((0, 1), (1, 0)))),
    "lines of one axis": (1, 37, 1, 1, (4001,), Geometry(16, 8, crop=((4, 3),))),
    "lines of three axes": (1, 16, 1, 1, (3, 5, 61), Geometry((2, 3, 4), (1, 2, 2), crop=((0, 1), (1, 1), (0, -2)))),
    "lines, two reductions": (1, 530, 1, 1, (4, 64), Geometry((3, 3), 2, crop=((1, 1), (0, 1)))),
    "parts, in groups": (2, 62, 4, 2, (9, 37), Geometry((5, 4), (2, 3), crop=((1, 2), (0, -1)))),
    "parts, in bands": (1, 61, 3, 1, (150, 94), Geometry((4, 5), 2, crop=((-1, 2), (1, 0)))),
    "parts, two reductions": (1, 600, 3, 1, (4, 61), Geometry((4, 4), 2, crop=((1, 1), (0, 3)))),
    "parts of several images": (5, 64, 2, 1, (3, 32), Geometry((3, 8), (1, 4), crop=((1, 0), (2, 2)))),
    "parts of one axis": (2, 130, 1, 1, (1203,), Geometry(40, 16, crop=((13, -5),))),
    "parts of three axes": (1, 72, 2, 1, (3, 5, 61), Geometry((2, 3, 4), (1, 2, 2), crop=((0, 1), (1, 1), (0, -2)))),
    "parts, in steps": (1, 140, 60, 1, (6, 90), Geometry((4, 4), 2, crop=((1, 1), (0, 2)))),
    "bands without inputs": (1, 8, 1, 1, (300, 40), Geometry((2, 6), (5, 3), (4, 2), crop=((29, -70), (0, 2)))),
}


def folded_layer(name, dtype, draw):
    batch, channels, out, groups, n, geometry = FOLDED[name]
    x = draw((batch, groups * channels, *n)).astype(dtype)
    w, bias = draw((groups * channels, out, *geometry.kernel)).astype(dtype), draw((groups * out,)).astype(dtype)
    return x, w, bias, geometry, groups, geometry.output_size(n)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", FOLDED)
def test_folding_is_exact(name, isa, dtype):
    cpu.force(isa)
    x, w, bias, geometry, groups, size = folded_layer(name, dtype, np.random.default_rng(1).standard_normal)
    packed = engine.Packed(w, bias, geometry, groups, method=engine.Method.FOLDED)
    why = packed.why(len(x), geometry, x.shape[2:], size)
    assert ", folded because " in why
    assert " positions at a time" in why or not name.startswith("bands")
    of_two = isa == "baseline" and dtype is np.float64
    assert "lanes run along inputs" in why or not name.startswith("lines") or of_two
    in_parts = isa == "amx" and dtype is np.float32 and name.startswith("parts")
    assert "by the matrix unit" in why or not in_parts
    y = packed.run(x, geometry, size)
    exact = reference.scatter(*(a.astype(np.float64) for a in (x, w, bias)), geometry=geometry, groups=groups)
    assert np.linalg.norm(y - exact) <= TOLERANCE[dtype] * np.linalg.norm(exact)
    # Neither the batch, nor an image's place in it, nor the threads change the bits.
    for threads in (1, 3):
        np.testing.assert_array_equal(packed.run(x[-1:], geometry, size, threads=threads), y[-1:])
    without = engine.Packed(w, None, geometry, groups, method=engine.Method.FOLDED).run(x, geometry, size)
    np.testing.assert_array_equal(without + bias.reshape(-1, *(1,) * geometry.rank), y)


@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", [name for name, layer in FOLDED.items() if layer[-1].rank > 1])
def test_folding_channels_last_gives_the_same_bits(name, isa):
    cpu.force(isa)
    x, w, bias, geometry, groups, size = folded_layer(name, np.float32, np.random.default_rng(2).standard_normal)
    expected = engine.Packed(w, bias, geometry, groups, method=engine.Method.FOLDED).run(x, geometry, size)
    packed = engine.Packed(w, bias, geometry, groups, method=engine.Method.FOLDED, last=True)
    for threads in (1, 3):
        y = packed.run_last(engine.channels_last(x), geometry, size, threads=threads)
        np.testing.assert_array_equal(np.moveaxis(y, -1, 1), expected)


@pytest.mark.parametrize("name", FOLDED)
def test_folding_of_what_is_no_number_spreads_nothing(name):
    x, w, bias, geometry, groups, size = folded_layer(name, np.float32, np.random.default_rng(3).standard_normal)
    x[0, 1].flat[x[0, 1].size // 2] = np.nan
    direct, folded = (
        engine.Packed(w, bias, geometry, groups, method=method).run(x, geometry, size)
        for method in (engine.Method.DIRECT, engine.Method.FOLDED)
    )
    np.testing.assert_array_equal(np.isnan(folded[1:]), np.isnan(direct[1:]))
    assert np.isnan(folded).sum() <= np.isnan(direct).sum()


def test_folding_of_every_width_writes_nowhere_else():
    rng = np.random.default_rng(4)
    geometry = Geometry((2, 3), 2, crop=((0, 1), (1, 0)))
    w = rng.integers(-4, 5, (40, 3, 2, 3)).astype(np.float32)
    packed = engine.Packed(w, None, geometry, 1, method=engine.Method.FOLDED)
    direct = engine.Packed(w, None, geometry, 1)
    for high, wide in itertools.product((1, 2, 5), range(1, 36)):
        x = rng.integers(-4, 5, (2, 40, high, wide)).astype(np.float32)
        size = geometry.output_size((high, wide))
        shape = (2, 3, *size)
        room = np.full(np.prod(shape) + 16, 77, np.float32)
        out = room[5:-11].reshape(shape)
        packed.run(x, geometry, size, out=out)
        np.testing.assert_array_equal(out, direct.run(x, geometry, size))
        assert (room[:5] == 77).all()
        assert (room[-11:] == 77).all()


def test_folding_where_it_is_faster():
    """The sizes of an image decide, and not how many of them there are, for that would change the bits."""
    geometry = Geometry((4, 4), 2, crop=1)
    few = engine.Packed(np.ones((512, 4, 4, 4), np.float32), None, geometry, 1, method=engine.Method.FASTEST)
    for batch in (1, 2, 100):
        assert ", folded because " in few.why(batch, geometry, (5, 7), (10, 14))
    assert " positions at a time" in few.why(1, geometry, (300, 300), (600, 600))
    many = engine.Packed(np.ones((256, 128, 4, 4), np.float32), None, geometry, 1, method=engine.Method.FASTEST)
    assert ", folded because " not in many.why(1, geometry, (16, 16), (32, 32))
    before = few._plan.packed_bytes
    few.run(np.ones((1, 512, 5, 7), np.float32), geometry, (10, 14))
    assert before < few._plan.packed_bytes <= 2.1 * before
