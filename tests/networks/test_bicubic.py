"""Bicubic resampling against Pillow's (same kernel, another border) and against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from upscore import reference
from upscore.errors import ArgumentError
from upscore.geometry import Geometry
from upscore.networks import bicubic

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("height", "width"), [(30, 42), (122, 168), (47, 99), (61, 21)])
def test_agrees_with_pillow_away_from_the_border(height: int, width: int) -> None:
    picture = RANDOM.random((61, 84), dtype=np.float32)
    theirs = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    ours = bicubic.resize(picture, height, width)
    inside = (slice(6, -6), slice(6, -6))
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-6)


@pytest.mark.parametrize(("size", "new_size"), [(9, 4), (4, 9), (8, 16), (7, 7), (3, 40), (1, 2), (50, 3)])
def test_is_the_definition_with_mirrored_borders(size: int, new_size: int) -> None:
    row = RANDOM.random(size)
    reach = 200
    mirrored = np.pad(row, reach, mode="symmetric")
    places = np.arange(-reach, size + reach)
    stretch = max(1, size / new_size)
    expected = []
    for y in range(new_size):
        weights = bicubic.cubic((((y + 0.5) * size / new_size - 0.5) - places) / stretch)
        expected.append(weights @ mirrored / weights.sum())
    np.testing.assert_allclose(bicubic.resize_axis(row, 0, size, new_size), expected, rtol=1e-12)


def test_known_weights_of_halving() -> None:
    _, weights = bicubic.taps(20, 10)
    # Keys' cubic at 1/4, 3/4, 5/4, 7/4 of its unit, halved: 111/128, 29/128, -9/128, -3/128.
    expected = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    np.testing.assert_allclose(weights[5], expected, atol=1e-15)


def test_a_band_has_the_bits_of_the_whole() -> None:
    picture = RANDOM.random((2, 23, 9), dtype=np.float32)
    whole = bicubic.resize_axis(picture, 1, 23, 46)
    band = bicubic.resize_axis(picture[:, 6:15], 1, 23, 46, first=6, start=16, stop=26)
    assert np.array_equal(band, whole[:, 16:26])


def test_the_kernel_makes_a_transposed_convolution_bicubic() -> None:
    row = RANDOM.random(11)
    kernel = bicubic.upsampling_kernel(4)
    geometry = Geometry(kernel=16, stride=4, crop=6)
    large = reference.scatter(row[None, None], kernel[None, None], geometry=geometry)[0, 0]
    np.testing.assert_allclose(large[8:-8], bicubic.resize_axis(row, 0, 11, 44)[8:-8], atol=1e-12)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ArgumentError, match="new_size: expected an integer of at least 1, got 0; for example new_size"):
        bicubic.resize(np.ones((4, 4), np.float32), 0, 3)
    with pytest.raises(ArgumentError, match="factor: expected an even integer of at least 2, got 3; for example fact"):
        bicubic.upsampling_kernel(3)
