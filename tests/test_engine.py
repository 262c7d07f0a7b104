"""The engine: the same bits for any number of threads, right on every instruction set, frugal, safe to share."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import upscore as up
from upscore import cpu, engine, reference
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")

TOLERANCE = {np.float32: 1e-6, np.float64: 1e-14}

# name: x, w, geometry, groups. One or more of every kind of work, large enough to be shared among threads.
LAYERS = {
    "one output channel": ((1, 24, 33, 41), (24, 1, 4, 4), Geometry((4, 4), 2, crop=1), 1),
    "score maps": ((1, 5, 9, 11), (5, 5, 16, 12), Geometry((16, 12), (8, 6)), 1),
    "per channel": ((2, 7, 19, 23), (7, 1, 8, 6), Geometry((8, 6), (4, 3), crop=((1, 2), (2, 0))), 7),
    "per channel, dilated": ((2, 5, 9, 130), (5, 1, 3, 4), Geometry((3, 4), (1, 3), 2, crop=((1, 0), (2, -1))), 5),
    "kernel of the stride": ((1, 48, 21, 17), (48, 32, 2, 2), Geometry((2, 2), 2), 1),
    "many channels": ((3, 96, 4, 5), (96, 40, 4, 3), Geometry((4, 3), 2, crop=((1, 1), (0, 2))), 1),
    "small map": ((2, 70, 3, 4), (70, 32, 4, 5), Geometry((4, 5), (2, 3), crop=((1, 1), (2, 0))), 1),
    "small map, groups": ((9, 66, 2, 3), (66, 16, 3, 5), Geometry((3, 5), (1, 2), crop=((0, 1), (1, -2))), 2),
    "single inputs": ((5, 131, 1, 1), (131, 48, 3, 4), Geometry((3, 4), 1), 1),
    "stride five": ((2, 48, 26, 37), (48, 20, 5, 7), Geometry((5, 7), (3, 5), crop=((3, 1), (-1, 2))), 1),
    "stride one": ((1, 32, 15, 18), (32, 24, 3, 3), Geometry((3, 3), 1, crop=1), 1),
    "odd stride, groups": ((1, 30, 13, 14), (30, 7, 5, 4), Geometry((5, 4), (3, 5), crop=((-2, 1), (0, -3))), 3),
    "few channels out": ((3, 48, 21, 30), (48, 3, 5, 4), Geometry((5, 4), (3, 2), (1, 2), crop=((1, -2), (3, 0))), 1),
    "few channels out, volumes": ((9, 32, 5, 4, 7), (32, 2, 3, 2, 5), Geometry((3, 2, 5), (2, 1, 2), crop=1), 2),
    "dilated": ((1, 16, 17, 12), (16, 12, 3, 4), Geometry((3, 4), (2, 3), (3, 2)), 1),
    "taps far apart": ((1, 512, 6, 7), (512, 8, 8, 8), Geometry((8, 8), (8, 8), (9, 9)), 1),
    "holes": ((1, 40, 23, 20), (40, 20, 2, 1), Geometry((2, 1), (3, 4)), 1),
    "one axis": ((2, 64, 150), (64, 48, 16), Geometry(16, 8, crop=4), 1),
    "short and wide": ((1, 257, 60), (257, 1, 128), Geometry(128, 32), 1),
    "three axes": (
        (1, 12, 7, 8, 9),
        (12, 10, 3, 4, 2),
        Geometry((3, 4, 2), (2, 1, 2), crop=((0, 1), (1, 1), (0, 0))),
        2,
    ),
}


def arrays_of(name, dtype, low=0.5, batches=1):
    """Numbers in [low, low + 1), and the output's size."""
    x_shape, w_shape, geometry, groups = LAYERS[name]
    x_shape = (batches * x_shape[0], *x_shape[1:])
    size = geometry.output_size(x_shape[2:])
    rng = np.random.default_rng(sum(map(ord, name)))
    shapes = (x_shape, w_shape, (w_shape[1] * groups,), (x_shape[0], w_shape[1] * groups, *size))
    x, w, bias, grad_y = ((rng.random(shape) + low).astype(dtype) for shape in shapes)
    return x, w, bias, grad_y, geometry, groups, size


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", LAYERS)
def test_every_instruction_set_is_exact(name, isa, dtype):
    cpu.force(isa)
    x, w, bias, grad_y, geometry, groups, size = arrays_of(name, dtype)
    wide = [a.astype(np.float64) for a in (x, w, bias, grad_y)]
    y = reference.scatter(*wide[:3], geometry=geometry, groups=groups)
    grad_x, grad_w, _ = reference.gradients(wide[3], *wide[:2], geometry=geometry, groups=groups)
    packed = engine.Packed(w, bias, geometry, groups)
    assert packed._plan.isa == isa
    assert packed.why(x.shape[0], geometry, x.shape[2:], size).startswith(f"{isa}: ")
    assert relative_error(packed.run(x, geometry, size), y) <= TOLERANCE[dtype]
    for method in (engine.Method.FILTERED, engine.Method.FOLDED):
        other = engine.Packed(w, bias, geometry, groups, method=method)
        assert relative_error(other.run(x, geometry, size), y) <= TOLERANCE[dtype]
    backward = engine.Packed(w, None, geometry, groups, adjoint=True)
    assert relative_error(backward.run(grad_y, geometry, x.shape[2:]), grad_x) <= TOLERANCE[dtype]
    assert relative_error(engine.weight_gradient(x, grad_y, geometry, groups, w.shape[1]), grad_w) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", LAYERS)
def test_same_bits_for_any_number_of_threads(name, isa, dtype):
    cpu.force(isa)
    for batches in (1, 4, 16, 64):  # until it is worth waking 8 threads: otherwise one is compared with itself
        x, w, bias, grad_y, geometry, groups, size = arrays_of(name, dtype, low=-0.5, batches=batches)
        forward = engine.Packed(w, bias, geometry, groups)
        filtered = engine.Packed(w, bias, geometry, groups, method=engine.Method.FILTERED)
        folded = engine.Packed(w, bias, geometry, groups, method=engine.Method.FOLDED)
        cpu.set_threads(8)
        if "; 1 thread" not in forward.why(x.shape[0], geometry, x.shape[2:], size):
            break
    else:
        pytest.fail("one thread computes even the largest batch alone")
    backward = engine.Packed(w, None, geometry, groups, adjoint=True)

    def everything(threads):
        yield forward.run(x, geometry, size, threads=threads)
        yield filtered.run(x, geometry, size, threads=threads)
        yield folded.run(x, geometry, size, threads=threads)
        yield backward.run(grad_y, geometry, x.shape[2:], threads=threads)
        yield engine.weight_gradient(x, grad_y, geometry, groups, w.shape[1], threads=threads)
        yield engine.bias_gradient(grad_y, threads=threads)

    one = list(everything(1))
    for threads in (2, 3, 8):
        for ours, theirs in zip(everything(threads), one, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@st.composite
def any_geometry(draw):
    """Crops of either sign, sizes down to one; more than torch can say."""
    rank = draw(st.integers(1, 3))
    pick = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    n, kernel, stride, dilation = pick(1, {1: 60, 2: 12, 3: 5}[rank]), pick(1, 7), pick(1, 6), pick(1, 4)
    full = [(i - 1) * s + d * (k - 1) + 1 for i, k, s, d in zip(n, kernel, stride, dilation, strict=True)]
    before = [draw(st.integers(-7, m + 2)) for m in full]
    after = [draw(st.integers(-7, m - 1 - lo)) for m, lo in zip(full, before, strict=True)]
    return n, Geometry(kernel, stride, dilation, tuple(zip(before, after, strict=True)))


@settings(max_examples=3 * settings.default.max_examples)
@given(any_geometry(), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from(cpu.available()))
def test_any_crop_on_any_instruction_set(sizes, groups, a, b, isa):
    n, geometry = sizes
    cpu.force(isa)
    rng = np.random.default_rng(a * 10 + b)
    x, w = rng.random((2, groups * a, *n)) + 0.5, rng.random((groups * a, b, *geometry.kernel)) + 0.5
    bias, size = rng.random(groups * b) + 0.5, geometry.output_size(n)
    y = reference.scatter(x, w, bias, geometry=geometry, groups=groups)
    grad_y = rng.random(y.shape) + 0.5
    grad_x, grad_w, _ = reference.gradients(grad_y, x, w, geometry=geometry, groups=groups)
    np.testing.assert_allclose(engine.Packed(w, bias, geometry, groups).run(x, geometry, size), y, rtol=1e-14)
    for method in (engine.Method.FILTERED, engine.Method.FOLDED):
        other = engine.Packed(w, bias, geometry, groups, method=method)
        np.testing.assert_allclose(other.run(x, geometry, size), y, rtol=1e-13, atol=1e-13)
    backward = engine.Packed(w, None, geometry, groups, adjoint=True)
    np.testing.assert_allclose(backward.run(grad_y, geometry, n), grad_x, rtol=1e-13)
    np.testing.assert_allclose(engine.weight_gradient(x, grad_y, geometry, groups, b), grad_w, rtol=1e-13)


@pytest.mark.parametrize("isa", cpu.available())
def test_sizes_around_the_lane_count(isa):
    """Every width from 1 past two of the widest vectors, every number of rows past a tile, writing nowhere else."""
    cpu.force(isa)
    for width, rows in itertools.chain(((w, 3) for w in range(1, 36)), ((9, r) for r in range(1, 27))):
        geometry = Geometry((3, 3), (1, 2), crop=((1, 1), (0, 1)))
        rng = np.random.default_rng(width * 100 + rows)
        x, w = rng.random((1, 2, 3, width)) + 0.5, rng.random((2, rows, 3, 3)) + 0.5
        size = geometry.output_size((3, width))
        y = reference.scatter(x, w, geometry=geometry)
        for dtype, tolerance in TOLERANCE.items():
            room = np.full(y.size + 16, 77, dtype)
            out = room[5 : 5 + y.size].reshape(y.shape)  # not at the beginning of a vector
            begin = np.ones(x.size + 3, dtype)[3:].reshape(x.shape)
            begin[...] = x
            theirs = reference.scatter(begin, w.astype(dtype), geometry=geometry)
            engine.Packed(w.astype(dtype), None, geometry, 1).run(begin, geometry, size, out=out)
            assert relative_error(out, theirs) <= tolerance
            assert np.all(room[:5] == 77)
            assert np.all(room[5 + y.size :] == 77)


@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("signed", [True, False])
def test_sums_of_16384_terms_in_float32(isa, signed):
    """1024 channels times 16 taps (and as many positions, for the weights), both signs or all of one sign."""
    cpu.force(isa)
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal if signed else rng.random
    geometry = Geometry((4, 4), 1, crop=3)
    x, w = (numbers(s).astype(np.float32) for s in ((1, 1024, 7, 6), (1024, 3, 4, 4)))
    y = engine.Packed(w, None, geometry, 1).run(x, geometry, (4, 3))
    wide = [a.astype(np.float64) for a in (x, w)]
    assert relative_error(y, reference.scatter(*wide, geometry=geometry)) <= 1e-6
    geometry = Geometry((2, 3), 2)
    x, grad_y = (numbers(s).astype(np.float32) for s in ((4, 2, 64, 64), (4, 3, 128, 129)))
    grad_w = engine.weight_gradient(x, grad_y, geometry, 1, 3)
    theirs = reference.gradients(grad_y.astype(float), x.astype(float), np.ones((2, 3, 2, 3)), geometry=geometry)
    assert relative_error(grad_w, theirs[1]) <= 1e-6


def test_leading_axes_say_so():
    geometry = Geometry((2, 3, 2, 2, 3), 2)
    packed = engine.Packed(np.ones((1, 1, 2, 3, 2, 2, 3)), None, geometry, 1)
    assert packed.why(1, geometry, (2,) * 5, (4,) * 5).startswith("rank 5: loops over the first 2 axes")


def test_one_plan_called_from_many_threads():
    rng = np.random.default_rng(2)
    w = rng.random((16, 12, 4, 4), np.float32)
    layer = up.plan(w, stride=2, padding=1)
    inputs = [rng.random((1 + i % 2, 16, 20 + i, 31 - i), np.float32) for i in range(12)]
    expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for ours, theirs in zip(pool.map(layer, inputs), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_other_python_threads_run_meanwhile():
    """A tick of another thread falls well inside of a call: impossible while the call holds the GIL."""
    cpu.set_threads(1)
    x, w = np.ones((4, 64, 48, 48), np.float32), np.ones((64, 32, 4, 4), np.float32)
    layer, ticks, stop = up.plan(w, stride=2), [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    other = threading.Thread(target=tick)
    other.start()
    try:
        for _ in range(100):
            begin = time.perf_counter()
            layer(x)
            end = time.perf_counter()
            margin = (end - begin) / 4
            inside = [t for t in ticks if begin + margin < t < end - margin]
            ticks.clear()
            if inside:
                break
    finally:
        stop.set()
        other.join()
    assert inside


def run_alone(program, timeout=120, **environment):
    """What ``program`` prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    not os.path.exists("/proc/self/task") or len(os.sched_getaffinity(0)) < 2,
    reason="hardware: needs Linux's /proc and two cores",
)
def test_workers_keep_off_the_callers_core():
    out = run_alone(
        """
        import os
        import numpy as np, upscore as up

        before = set(os.listdir("/proc/self/task"))
        up.cpu.set_threads(3)
        up.plan(np.ones((64, 32, 4, 4), "float32"), stride=2)(np.ones((1, 64, 48, 48), "float32"))
        workers = set(os.listdir("/proc/self/task")) - before
        print(len(workers), {len(os.sched_getaffinity(0)) - len(os.sched_getaffinity(int(w))) for w in workers})
        """
    )
    assert out == "2 {1}\n"


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="hardware: this system cannot fork")
sanitized = pytest.mark.skipif(
    "UPSCORE_SANITIZED" in os.environ,
    reason="hardware: a sanitizer keeps freed memory, and its own locks do not survive a fork among threads",
)


@needs_fork
@sanitized
def test_forked_children_compute_too():
    """After the pool has run, and while other threads of the parent are planning and computing with the same plan."""
    out = run_alone(
        """
        import os, signal, threading, warnings
        import numpy as np
        import upscore as up

        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forking with threads
        up.cpu.set_threads(4)
        layer = up.plan(np.ones((16, 16, 4, 4), np.float32), stride=2)
        x = np.random.default_rng(0).random((2, 16, 40, 40), np.float32)
        expected = layer(x)
        stop = threading.Event()

        def keep_busy(seed):
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                layer(np.ones((1, 16, *rng.integers(1, 40, 2)), np.float32))

        others = [threading.Thread(target=keep_busy, args=(seed,)) for seed in range(3)]
        for other in others:
            other.start()
        bad = 0
        for _ in range(60):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if np.array_equal(layer(x), expected) else 1)
            bad += os.waitpid(child, 0)[1] != 0
        stop.set()
        for other in others:
            other.join()
        print(bad)
        """
    )
    assert out.strip() == "0"


@needs_fork
def test_multiprocessing_with_fork():
    out = run_alone(
        """
        import multiprocessing, warnings
        import numpy as np
        import upscore as up

        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forking with threads
        up.cpu.set_threads(4)
        w, x = np.ones((16, 16, 4, 4), np.float32), np.random.default_rng(0).random((8, 16, 30, 40), np.float32)

        def layer(x):
            return up.conv_transpose(x, w, stride=2)

        expected = layer(x)
        with multiprocessing.get_context("fork").Pool(3) as pool:
            parts = pool.map_async(layer, [x[i : i + 1] for i in range(8)]).get(60)
        print(np.array_equal(np.concatenate(parts), expected))
        """
    )
    assert out.strip() == "True"


MEMORY = """
import resource
import numpy as np
import upscore as up
from upscore import engine

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()
"""
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="hardware: needs Linux's /proc")


@needs_proc
@sanitized
def test_200_calls_do_not_grow_the_process():
    """Calls and plans and gradients of ever the same five sizes: after the first rounds, less than 1 MiB more."""
    out = run_alone(
        MEMORY
        + textwrap.dedent("""
        up.cpu.set_threads(2)
        w = np.ones((24, 16, 4, 3), np.float32)
        layer = up.plan(w, stride=2)
        def once(i):
            x = np.ones((1 + i % 2, 24, 30 + i % 5, 50), np.float32)
            y = layer(x)
            up.plan(w, stride=2)(x)
            up.conv_transpose_backward(y, x, w, stride=2)
        for i in range(30):
            once(i)
        before = resident()
        for i in range(200):
            once(i)
        print(resident() - before)
        """)
    )
    assert int(out) < 2**20


@needs_proc
@sanitized
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_scratch_of_a_thread_stays_under_2_mib(name, dtype):
    """What 8 threads hold more than the arrays do, shared out: scratch, stacks, and all book-keeping."""
    x_shape, w_shape, geometry, groups = LAYERS[name]
    x_shape = (4 * x_shape[0], *x_shape[1:])
    out = run_alone(
        MEMORY
        + textwrap.dedent(f"""
        from upscore.geometry import Geometry
        geometry, threads = {geometry}, 8
        size = geometry.output_size({x_shape[2:]})
        x, w = np.ones({x_shape}, np.{dtype}), np.ones({w_shape}, np.{dtype})
        y = np.ones(({x_shape[0]}, {w_shape[1] * groups}, *size), np.{dtype})
        packed = engine.Packed(w, None, geometry, {groups})
        before = resident()
        for _ in range(30):
            packed.run(x, geometry, size, out=y, threads=threads)
        print((resident() - before) / threads)
        """)
    )
    assert float(out) < 2 * 2**20
