"""Tiles have no seams: they are the whole picture's output, piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from upscore.networks.super_resolution import SuperResolution
from upscore.tiled import tiles

torch.manual_seed(0)
NETWORK = SuperResolution().eval().requires_grad_(False)


def tiled(picture: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    return np.concatenate(
        [
            tiles.upscale_band(NETWORK, picture[first:last], top, bottom, first, columns)
            for top, bottom, first, last in tiles.bands(len(picture), NETWORK.halo, rows)
        ]
    )


@pytest.mark.parametrize(
    ("size", "tile"), [((40, 31), (16, 8)), ((33, 50), (7, 50)), ((5, 64), (256, 20)), ((1, 3), (1, 1))]
)
def test_tiles_are_the_whole(size: tuple[int, int], tile: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).random(size, dtype=np.float32)
    whole = NETWORK(torch.from_numpy(picture)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(tiled(picture, *tile), whole, atol=1e-6)


@given(height=st.integers(1, 300), halo=st.integers(0, 20), rows=st.integers(1, 64))
def test_bands_cover_every_row_once_with_its_surroundings(height: int, halo: int, rows: int) -> None:
    bands = list(tiles.bands(height, halo, rows))
    assert [row for top, bottom, _, _ in bands for row in range(top, bottom)] == list(range(height))
    for top, bottom, first, last in bands:
        assert (first, last) == (max(0, top - halo), min(height, bottom + halo))
        assert bottom - top <= rows
