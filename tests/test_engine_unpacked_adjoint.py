"""Input gradients on few positions, from weights as they lie. The right values are torch's, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upscore import cpu, engine
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", cpu.available())
@pytest.mark.parametrize(
    ("batch", "size", "channels", "geometry"),
    [
        (1, (4, 4), (200, 60), Geometry((4, 4), 2, crop=((1, 1), (1, 1)))),
        (3, (1, 3), (190, 37), Geometry((3, 5), (2, 1), crop=((0, 1), (3, -1)))),
        (2, (1, 1), (101, 40), Geometry((4, 4), 1)),
        (1, (5,), (130, 70), Geometry((6,), 3, 2, crop=((4, 2),))),
        (1, (2, 1, 3), (90, 21), Geometry((2, 3, 2), (2, 1, 2), (1, 2, 1), crop=((0, 0), (2, 1), (-1, 1)))),
    ],
)
def test_few_positions(batch, size, channels, geometry, isa, dtype):
    cpu.force(isa)
    rng = np.random.default_rng(sum(channels))
    w = rng.standard_normal((*channels, *geometry.kernel)).astype(dtype)
    bias = rng.standard_normal(channels[0]).astype(dtype)
    inputs = geometry.output_size(size)
    x = rng.standard_normal((batch, channels[1], *inputs)).astype(dtype)
    # Padded by hand: torch's convolution has the same zeros before and after. What is cut off is zero.
    before = [max(lo, 0) for lo, _ in geometry.crop]
    padded = np.pad(x, [(0, 0), (0, 0), *((lo, 40) for lo in before)])
    padded = padded[(..., *(slice(max(-lo, 0), None) for lo, _ in geometry.crop))]
    exact = getattr(torch.nn.functional, f"conv{geometry.rank}d")(
        torch.from_numpy(padded).double(),
        torch.from_numpy(w).double(),
        torch.from_numpy(bias).double(),
        stride=geometry.stride,
        dilation=geometry.dilation,
    ).numpy()[(..., *(slice(n) for n in size))]
    results = []
    for threads in (1, 2, 7):
        once = (batch, inputs, size, threads)
        packed = engine.Packed(w, bias, geometry, 1, adjoint=True, once=once)
        why = packed.why(batch, geometry, inputs, size)
        assert "weights are read as they lie" in why or (isa, dtype) != ("avx512", np.float32)
        results.append(packed.run(x, geometry, size, threads=threads))
        last = engine.Packed(w, bias, geometry, 1, adjoint=True, last=True, once=once)
        turned = last.run_last(np.ascontiguousarray(np.moveaxis(x, 1, -1)), geometry, size, threads=threads)
        if "weights are read as they lie" in last.why(batch, geometry, inputs, size):
            results.append(np.moveaxis(turned, -1, 1))
    for result in results:
        assert np.linalg.norm(result - exact) <= 4 * np.finfo(dtype).eps * np.linalg.norm(exact)
        np.testing.assert_array_equal(result, results[0])


def test_the_weights_are_kept():
    """Nothing else may refer to them when they are read."""
    geometry = Geometry((4, 4), 2, crop=((1, 1), (1, 1)))
    rng = np.random.default_rng(1)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in ((256, 64, 4, 4), (1, 64, 8, 8)))
    kept = w.copy()
    packed = engine.Packed(w, None, geometry, 1, adjoint=True, once=(1, (8, 8), (4, 4), 1))
    assert "weights are read as they lie" in packed.why(1, geometry, (8, 8), (4, 4))
    del w
    other = [rng.standard_normal((256, 64, 4, 4)).astype(np.float32) for _ in range(8)]
    y = packed.run(x, geometry, (4, 4), threads=1)
    exact = torch.nn.functional.conv2d(torch.from_numpy(x).double(), torch.from_numpy(kept).double(), None, 2, 1)
    assert len(other) == 8
    assert np.linalg.norm(y - exact.numpy()) <= 1e-6 * torch.linalg.norm(exact)
