"""All gradients in one call, of arrays that lie channels first and last in any mixture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from upscore import cpu, engine
from upscore.geometry import Geometry

LAYERS = (
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
)


def lying(a, last):
    """An array (N, C, *spatial) as the engine takes it, and what has to live as long."""
    a = engine.channels_last(a) if last else a
    address, shape, _ = engine.lying(a)
    return engine.Lying(address, (shape[0], shape[-1], *shape[1:-1]) if last else shape, last), a


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("batch", "size", "channels", "kernel", "stride", "groups"),
    [
        (2, (13, 9), (16, 24), (3, 5), (2, 3), 1),
        (1, (21, 30), (3, 1), (4, 4), (2, 2), 1),
        (3, (7, 6), (8, 12), (2, 3), (1, 2), 4),
        (2, (11, 8), (6, 6), (4, 3), (2, 1), 6),
        (1, (4, 5, 6), (20, 7), (3, 2, 4), (1, 2, 3), 1),
        (4, (301,), (5, 40), (9,), (4,), 1),
        (1, (1, 1), (70, 20), (4, 4), (1, 1), 1),
    ],
)
def test_gradients_however_arrays_lie(batch, size, channels, kernel, stride, groups, dtype):
    rng = np.random.default_rng(3)
    geometry = Geometry.from_padding(kernel, stride=stride, padding=tuple(k // 3 for k in kernel))
    x = rng.uniform(0.5, 1.5, (batch, channels[0], *size)).astype(dtype)
    grad_y = rng.uniform(0.5, 1.5, (batch, channels[1], *geometry.output_size(size))).astype(dtype)
    w = rng.uniform(0.5, 1.5, (channels[0], channels[1] // groups, *kernel)).astype(dtype)
    leaves = [torch.from_numpy(a).double().requires_grad_() for a in (x, w, np.zeros(channels[1]))]
    y = LAYERS[len(size) - 1](*leaves, stride=stride, padding=[before for before, _ in geometry.crop], groups=groups)
    exact = torch.autograd.grad(y, leaves, torch.from_numpy(grad_y).double())
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    for isa, lasts in itertools.product(cpu.available(), itertools.product((False, True), repeat=4)):
        cpu.force(isa)
        given = [lying(a, last) for a, last in zip((x, grad_y, w), lasts[:3], strict=True)]
        arrays = [array for array, _ in given]
        terms = *arrays, np.dtype(dtype), geometry, groups
        grads = engine.gradients(*terms, (True, True, True), 2, last=lasts[3])
        for ours, theirs in zip(grads, exact, strict=True):
            assert ours.shape == theirs.shape
            assert np.linalg.norm(ours - theirs.numpy()) <= tolerance * np.linalg.norm(theirs.numpy())
        assert grads[0].strides[1 if lasts[3] else -1] == x.itemsize  # channels lie next to each other, or positions
        for one in range(3):
            wanted = tuple(i == one for i in range(3))
            alone = engine.gradients(*terms, wanted, 1, last=lasts[3])
            assert [a is not None for a in alone] == list(wanted)
            np.testing.assert_array_equal(alone[one], grads[one])


@pytest.mark.parametrize("channels", [1, 3, 64, 5000])
def test_sums_of_many_pixels_are_exact(channels):
    """More numbers than a float32 sum would hold: 2^24 + 1 is none."""
    pixels = 2**25 // channels if channels < 64 else 2**17 // channels
    value = np.float32(1.0 + 2.0**-12)
    grad_y = np.full((1, pixels, channels), value)
    at = engine.lying(grad_y)._replace(shape=(1, channels, pixels), last=True)
    x, w = np.zeros((1, 1, pixels), np.float32), np.zeros((1, channels, 1), np.float32)
    terms = engine.lying(x), at, engine.lying(w), np.dtype(np.float32), Geometry(1, 1, rank=1), 1
    two, one = (engine.gradients(*terms, (False, False, True), threads)[2] for threads in (2, 1))
    np.testing.assert_array_equal(two, one)
    np.testing.assert_allclose(two, np.full(channels, pixels * float(value)), rtol=1e-7)


def test_numbers_that_do_not_belong_together_are_refused():
    at = [engine.lying(np.ones(shape, np.float32)) for shape in ((1, 2, 3), (1, 4, 5), (2, 4, 3))]
    for index, shape, says in (
        (0, (2, 2, 3), "the same batch"),
        (0, (1, 3, 3), "the weights' channels"),
        (1, (1, 5, 5), "the layer's channels"),
        (2, (2, 4), "one to three axes"),
    ):
        wrong = list(at)
        wrong[index] = at[index]._replace(shape=shape)
        with pytest.raises(ValueError, match=says):
            engine.gradients(*wrong, np.dtype(np.float32), Geometry(3, 1, rank=1), 1, (True, True, True))
