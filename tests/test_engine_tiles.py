"""How a call is cut into tiles: joined rows, windows of any size, several groups, and channels that do not mix.

The right values are torch's, in float64; whatever the cut, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upscore import cpu, engine
from upscore.geometry import Geometry

pytestmark = pytest.mark.usefixtures("restore_engine_settings")

CONVOLUTION = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
TRANSPOSED = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}


def run_all_ways(w, x, geometry, groups, size, adjoint):
    """Compares every instruction set with torch, and to the bit with other threads and with each image alone.

    Gives the engine's reasons, one text for each instruction set.
    """
    rank = geometry.rank
    function = (CONVOLUTION if adjoint else TRANSPOSED)[rank]
    lo = [before for before, _ in geometry.crop]
    exact = function(
        torch.from_numpy(x.astype(np.float64)),
        torch.from_numpy(w.astype(np.float64)),
        stride=geometry.stride,
        padding=lo,
        dilation=geometry.dilation,
        groups=groups,
    ).numpy()[(..., *(slice(n) for n in size))]
    reasons = []
    for isa in cpu.available():
        cpu.force(isa)
        packed = engine.Packed(w, None, geometry, groups, adjoint=adjoint)
        y = packed.run(x, geometry, size, threads=2)
        assert y.shape == exact.shape
        assert np.linalg.norm(y - exact) <= 1e-6 * np.linalg.norm(exact)
        np.testing.assert_array_equal(packed.run(x, geometry, size, threads=1), y)
        np.testing.assert_array_equal(packed.run(x, geometry, size, threads=7), y)
        for n in range(len(x)):
            np.testing.assert_array_equal(packed.run(x[n : n + 1], geometry, size)[0], y[n])
        reasons.append(packed.why(len(x), geometry, x.shape[2:], size))
    return reasons


@pytest.mark.parametrize(
    ("batch", "size", "channels", "kernel", "stride", "padding", "groups"),
    [
        (2, (13, 9), (40, 21), (5, 3), (1, 1), (2, 1), 1),
        (1, (23, 41), (7, 5), (5, 4), (2, 1), (0, 2), 1),
        (3, (4, 6, 5), (9, 11), (3, 5, 4), (1, 1, 1), (1, 0, 2), 1),
        (2, (5, 3, 6), (6, 7), (6, 5, 7), (3, 2, 4), (0, 1, 1), 1),
        (1, (9, 7), (5, 13), (17, 9), (5, 3), (3, 2), 1),
        (2, (7, 10), (24, 36), (3, 4), (2, 1), (1, 1), 12),
        (2, (11, 6), (35, 35), (3, 5), (1, 2), (1, 0), 35),
        (1, (3, 5, 9), (34, 34), (2, 3, 3), (2, 1, 3), (0, 1, 0), 34),
        (1, (301,), (3, 70), (11,), (3,), (4,), 1),
    ],
)
@pytest.mark.parametrize("adjoint", [False, True])
def test_tiles_give_the_values_of_torch_and_the_same_bits(
    batch, size, channels, kernel, stride, padding, groups, adjoint
):
    rng = np.random.default_rng(1)
    geometry = Geometry.from_padding(kernel, stride=stride, padding=padding)
    w = rng.standard_normal((channels[0], channels[1] // groups, *kernel)).astype(np.float32)
    output = geometry.output_size(size)
    shape, result = ((channels[1], *output), size) if adjoint else ((channels[0], *size), output)
    x = rng.standard_normal((batch, *shape)).astype(np.float32)
    run_all_ways(w, x, geometry, groups, result, adjoint)


@pytest.mark.parametrize("stride", range(2, 34))
@pytest.mark.parametrize("width", [7, 75])
def test_phases_of_every_stride_are_interleaved(stride, width):
    rng = np.random.default_rng(stride)
    geometry = Geometry.from_padding((3, stride + 2), stride=(2, stride), padding=(1, 2))
    w = rng.standard_normal((3, 2, *geometry.kernel)).astype(np.float32)
    x = rng.standard_normal((2, 3, 5, width)).astype(np.float32)
    run_all_ways(w, x, geometry, 1, geometry.output_size((5, width)), adjoint=False)


def test_rows_of_narrow_maps_are_joined():
    rng = np.random.default_rng(2)
    geometry = Geometry.from_padding((5, 5), stride=1, padding=2)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in ((20, 5, 5, 5), (2, 20, 21, 9)))
    reasons = run_all_ways(w, x, geometry, 1, geometry.output_size((21, 9)), adjoint=False)
    for why in reasons:  # three vectors of four lanes hold the nine, so only wider ones run across
        assert ("which vectors run across" in why) == why.startswith(("avx", "amx"))


def test_windows_of_any_size_are_copied_once_for_several_rows():
    rng = np.random.default_rng(3)
    geometry = Geometry.from_padding((4, 9, 10), stride=(2, 3, 4), padding=1)
    w = rng.standard_normal((6, 2, 4, 9, 10)).astype(np.float32)
    size = (3, 11, 16)
    x = rng.standard_normal((1, 2, *geometry.output_size(size))).astype(np.float32)
    for why in run_all_ways(w, x, geometry, 1, size, adjoint=True):
        assert "window of 360 inputs" in why
        assert "a task computes 1 x" not in why
        assert "copied once per row" in why


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "padding"),
    [
        ((5, 7), 3, (9, 32), (4, 16), (3, 5)),
        ((6, 4), 2, (33, 40), (8, 9), (0, 21)),
        ((2, 3, 5), 4, (2, 3, 17), (1, 2, 3), (0, 1, 8)),
        ((1100,), 2, (20,), (7,), (0,)),
        ((1, 1), 2, (1, 64), (1, 1), (0, 10)),
    ],
)
def test_kernels_that_fill_vectors_of_channels_that_do_not_mix(size, channels, kernel, stride, padding):
    rng = np.random.default_rng(4)
    geometry = Geometry.from_padding(kernel, stride=stride, padding=padding)
    w = rng.standard_normal((channels, 1, *kernel)).astype(np.float32)
    x = rng.standard_normal((2, channels, *geometry.output_size(size))).astype(np.float32)
    for why in run_all_ways(w, x, geometry, channels, size, adjoint=True):
        assert "lanes run along the kernel's rows" in why


def test_what_lies_behind_a_kernel_s_row_is_not_read_into_its_sum():
    """Kernels of 17 end inside of a vector; the numbers behind it are another position's, and may be infinite."""
    geometry = Geometry((17,), (20,))
    w = np.ones((1, 1, 17), np.float32)
    x = np.full((1, 1, 40), np.inf, np.float32)
    x[..., :17] = x[..., 20:37] = 1
    np.testing.assert_array_equal(
        engine.Packed(w, None, geometry, 1, adjoint=True).run(x, geometry, (2,)), [[[17, 17]]]
    )


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 4), (1, 1)), ((4, 6), (2, 3)), ((4, 32), (2, 16))])
def test_zero_weights_between_channels_are_not_multiplied(kernel, stride, adjoint):
    """Dense weights with one kernel for each channel, as FCN's upscores: the bits of a layer of as many groups."""
    rng = np.random.default_rng(5)
    geometry = Geometry.from_padding(kernel, stride=stride, padding=1)
    apart = rng.standard_normal((5, 1, *kernel)).astype(np.float32)
    dense = np.zeros((5, 5, *kernel), np.float32)
    dense[np.arange(5), np.arange(5)] = apart[:, 0]
    size = (6, 7)
    output = geometry.output_size(size)
    shape, result = (output, size) if adjoint else (size, output)
    x = rng.standard_normal((2, 5, *shape)).astype(np.float32)
    for why in run_all_ways(dense, x, geometry, 1, result, adjoint):
        assert "all weights between different channels are zero" in why
    grouped = engine.Packed(apart, None, geometry, 5, adjoint=adjoint)
    dense_layer = engine.Packed(dense, None, geometry, 1, adjoint=adjoint)
    np.testing.assert_array_equal(dense_layer.run(x, geometry, result), grouped.run(x, geometry, result))


def test_rows_longer_than_all_tiles_considered_are_copied_once():
    rng = np.random.default_rng(6)
    geometry = Geometry.from_padding((7,), stride=2, padding=3)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in ((2, 40, 7), (1, 2, 30000)))
    for why in run_all_ways(w, x, geometry, 1, geometry.output_size((30000,)), adjoint=False):
        assert "copied once per row" in why
