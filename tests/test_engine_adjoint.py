"""The adjoint where its input has few channels: the kernel's rows are read as they lie, whatever the stride."""

from __future__ import annotations

import numpy as np
import pytest

import upscore
from upscore import cpu, engine, reference
from upscore.geometry import Geometry

# channels in (of the layer: the many), out, groups, input size, geometry. Kernels that are cut into several sums, short
# rows, channels that do not fill vectors, borders on all sides, steps between the kernel's rows.
NARROW = {
    "inverse stft": (47, 1, 1, (21,), Geometry(1024, 256)),
    "long rows": (50, 3, 1, (13, 37), Geometry((3, 9), (2, 3), crop=((1, 2), (4, 5)))),
    "short rows": (64, 2, 1, (9, 11), Geometry((5, 4), 2, crop=((2, 1), (0, 3)))),
    "groups": (96, 2, 2, (7, 20), Geometry((3, 12), (1, 4), crop=4)),
    "three axes": (32, 1, 1, (5, 6, 20), Geometry((2, 3, 4), (1, 2, 2), dilation=(3, 2, 1), crop=1)),
}


@pytest.fixture(autouse=True)
def _restore_instruction_set():
    before = cpu.active()
    yield
    cpu.force(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize("name", NARROW)
def test_few_channels(name, isa, dtype):
    cpu.force(isa)
    channels, few, groups, n, geometry = NARROW[name]
    size = geometry.output_size(n)
    rng = np.random.default_rng(0)
    w, grad_y = (
        rng.standard_normal(s).astype(dtype) for s in ((channels, few, *geometry.kernel), (3, few * groups, *size))
    )

    def packed(threads, last=False):
        return engine.Packed(w, None, geometry, groups, adjoint=True, last=last, once=(3, size, n, threads))

    assert "few channels" in packed(1).why(3, geometry, size, n)
    ours = packed(1).run(grad_y, geometry, n, threads=1)
    x = np.zeros((3, channels, *n))
    exact = reference.gradients(grad_y.astype(float), x, w.astype(float), geometry=geometry, groups=groups)[0]
    assert np.linalg.norm(ours - exact) <= (1e-6 if dtype == np.float32 else 1e-14) * np.linalg.norm(exact)
    np.testing.assert_array_equal(packed(3).run(grad_y, geometry, n, threads=3), ours)
    last = packed(2, last=True).run_last(engine.channels_last(grad_y), geometry, n, threads=2)
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), ours)


def test_few_channels_with_a_bias():
    """A convolution of one channel, as the first of a network."""
    rng = np.random.default_rng(1)
    x, w, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, 1, 40, 70), (24, 1, 9, 9), (24,)))
    ours = upscore.conv(x, w, bias, stride=2, padding=3)
    plain = upscore.conv(x, w, stride=2, padding=3)
    np.testing.assert_allclose(ours, plain + bias.reshape(-1, 1, 1), rtol=0, atol=1e-6 * np.abs(plain).max())
