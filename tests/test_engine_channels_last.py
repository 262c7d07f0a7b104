"""The engine on channels-last arrays: the bits of channels-first ones."""

from __future__ import annotations

import numpy as np
import pytest

from upscore import _engine, cpu, engine
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "groups"),
    [
        ((9, 37), (5, 32), (3, 5), (2, 3), 1),
        ((70, 33), (24, 48), (4, 4), (2, 2), 1),
        ((5, 40), (70, 16), (2, 2), (2, 2), 1),
        ((6, 19), (6, 96), (2, 3), (3, 4), 2),
        ((41, 18), (40, 3), (4, 3), (2, 1), 1),
        ((3, 5, 21), (17, 32), (2, 3, 4), (1, 2, 2), 1),
        ((7, 9), (21, 21), (8, 8), (4, 4), 21),
        ((6, 11), (33, 33), (3, 5), (2, 3), 33),
        ((5, 6), (3, 3), (4, 3), (2, 2), 3),
        ((4, 3, 7), (16, 16), (3, 2, 4), (2, 3, 2), 16),
        ((19, 26), (64, 64), (3, 3), (1, 1), 1),
        ((3, 4), (40, 160), (4, 4), (2, 2), 1),
        ((40, 9000), (1, 1), (1, 2), (1, 2), 1),
        ((3, 9000), (40, 40), (2, 4), (1, 3), 40),
    ],
)
def test_channels_last_gives_the_same_bits(size, channels, kernel, stride, groups, adjoint):
    """Written directly where channels fill vectors, turned elsewhere."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((channels[0], channels[1] // groups, *kernel)).astype(np.float32)
    bias = rng.standard_normal(channels[0 if adjoint else 1]).astype(np.float32)
    geometry = Geometry.from_padding(kernel, stride=stride, padding=1)
    output = geometry.output_size(size)
    shape, result = ((channels[1], *output), size) if adjoint else ((channels[0], *size), output)
    x = rng.standard_normal((2, *shape)).astype(np.float32)
    for isa in cpu.available():
        cpu.force(isa)
        y = engine.Packed(w, bias, geometry, groups, adjoint=adjoint).run(x, geometry, result)
        for last in (True, False):
            packed = engine.Packed(w, bias, geometry, groups, adjoint=adjoint, last=last)
            np.testing.assert_array_equal(packed.run(x, geometry, result), y)
            for threads in (1, 3):
                y_last = packed.run_last(engine.channels_last(x), geometry, result, threads=threads)
                np.testing.assert_array_equal(y_last, np.moveaxis(y, 1, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "groups"),
    [
        ((23, 37), (32, 3), (5, 4), (2, 3), 1),
        ((31, 18), (48, 5), (1, 2), (3, 4), 1),
        ((21, 20), (40, 37), (3, 4), (2, 2), 1),
        ((19, 26), (48, 33), (3, 3), (1, 1), 1),
        ((5, 6, 17), (34, 22), (2, 3, 3), (1, 2, 1), 2),
        ((9, 14), (12, 12), (4, 4), (2, 2), 12),
        ((301,), (16, 2), (9,), (4,), 1),
        ((1, 1), (70, 20), (4, 4), (1, 1), 1),
        ((31, 23), (64, 1), (4, 4), (2, 2), 1),
        ((41, 17), (21, 2), (5, 7), (2, 2), 1),
        ((30, 12), (3, 1), (4, 4), (2, 2), 1),
        ((8, 14, 9), (72, 2), (3, 2, 2), (2, 1, 2), 2),
        ((13, 50), (12, 48), (3, 5), (2, 1), 1),
        ((3, 9, 10), (24, 12), (4, 2, 3), (1, 3, 2), 1),
        ((9, 310), (20, 16), (7, 3), (2, 3), 2),
    ],
)
def test_weight_gradients_of_channels_last(size, channels, kernel, stride, groups, dtype):
    """Read where a way can, turned elsewhere; either argument, or both."""
    rng = np.random.default_rng(1)
    geometry = Geometry.from_padding(kernel, stride=stride, padding=tuple(k // 3 for k in kernel))
    x = rng.standard_normal((3, channels[0], *size)).astype(dtype)
    grad_y = rng.standard_normal((3, channels[1], *geometry.output_size(size))).astype(dtype)
    terms = geometry, groups, channels[1] // groups
    exact = engine.weight_gradient(x.astype(np.float64), grad_y.astype(np.float64), *terms, 1, engine.Method.DIRECT)
    for isa in cpu.available():
        cpu.force(isa)
        for x_last, grad_last in ((True, True), (True, False), (False, True)):
            for method in (engine.Method.DIRECT, engine.Method.FASTEST, engine.Method.FILTERED):
                arrays = [engine.channels_last(a) if last else a for a, last in ((x, x_last), (grad_y, grad_last))]
                one, three = (
                    engine.weight_gradient(*arrays, *terms, threads, method, x_last=x_last, grad_last=grad_last)
                    for threads in (1, 3)
                )
                np.testing.assert_array_equal(one, three)
                assert np.linalg.norm(one - exact) <= (1e-6 if dtype == np.float32 else 1e-14) * np.linalg.norm(exact)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize(("channels", "groups", "able"), [(3, 2, (True, False)), (32, 1, (True, True))])
def test_arrays_that_lie_in_any_way_are_taken_and_turned_where_no_way_reads_or_writes_them(
    channels, groups, able, reads, writes
):
    rng = np.random.default_rng(channels)
    w = rng.integers(-4, 5, (8, channels, 2, 2)).astype(np.float32)
    x = rng.integers(-4, 5, (2, 8, 40, 41)).astype(np.float32)
    plan = _engine.PlanF32(w, None, [1, 2, 2], [1, 1, 1], groups, True, engine.Method.DIRECT, True, None)
    assert plan.channels_last(2, [1, 40, 41], [1, 80, 82], [0, 0, 0], 1) == able
    expected = engine.Packed(w, None, Geometry(2, 2, rank=2), groups).run(x, Geometry(2, 2, rank=2), (80, 82))
    y = np.empty_like(engine.channels_last(expected) if writes else expected)
    plan.run(engine.channels_last(x) if reads else x, y, [0, 0, 0], 1, reads, writes)
    np.testing.assert_array_equal(engine.channels_first(y) if writes else y, expected)
