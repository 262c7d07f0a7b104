"""BT.601 with studio swing, and PSNR."""

from __future__ import annotations

import numpy as np
import pytest

from upscore.errors import ArgumentError
from upscore.networks.colour import psnr, rgb_to_ycbcr, ycbcr_to_rgb


@pytest.mark.parametrize(
    ("rgb", "ycbcr"),
    [  # the rounded coefficients that BT.601 tables give for 8 bits
        ((1, 0, 0), (16 + 65.481, 128 - 37.797, 128 + 112)),
        ((0, 1, 0), (16 + 128.553, 128 - 74.203, 128 - 93.786)),
        ((0, 0, 1), (16 + 24.966, 128 + 112, 128 - 18.214)),
        ((0.5, 0.5, 0.5), (125.5, 128, 128)),
    ],
)
def test_primaries(rgb: tuple[float, ...], ycbcr: tuple[float, ...]) -> None:
    result = rgb_to_ycbcr(np.array(rgb, np.float64).reshape(3, 1, 1))
    np.testing.assert_allclose(255 * result.ravel(), ycbcr, atol=6e-4)


def test_there_and_back_in_float32() -> None:
    rgb = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
    back = ycbcr_to_rgb(rgb_to_ycbcr(rgb))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, rgb, atol=1e-6)


def test_psnr_leaves_the_border_out_and_knows_equality() -> None:
    a = np.zeros((8, 6))
    b = a.copy()
    b[2:-2, 2:-2] = 0.01
    b[0] = 1
    assert psnr(a, b, crop=2) == pytest.approx(40)
    assert psnr(a, a) == float("inf")
    with pytest.raises(ArgumentError, match=r"b: expected the shape of a, \(8, 6\), got \(8, 5\)"):
        psnr(a, b[:, 1:])
