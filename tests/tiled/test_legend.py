"""The legend below a picture: every entry is there, whole, at every width."""

from __future__ import annotations

import numpy as np
import pytest

from upscore.networks.classes import CAMVID
from upscore.tiled import legend

ENTRIES = list(zip(CAMVID.names, CAMVID.colours, strict=True))


@pytest.mark.parametrize("width", [1, 60, 131, 480, 3000])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_every_entry_has_a_patch_and_a_margin_around(width: int, count: int) -> None:
    drawn = legend.draw(ENTRIES[:count], width)
    assert drawn.shape[1] >= width
    assert drawn.dtype == np.uint8
    size = max(12, width // 40)
    for _, colour in ENTRIES[:count]:
        assert (drawn == colour).all(axis=2).sum() >= (size - 2) ** 2  # the patch without its outline
    for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (edge == 255).all()


def test_letters_grow_with_the_picture() -> None:
    small, large = (legend.draw(ENTRIES[:1], width) for width in (480, 4800))
    assert large.shape[0] == 10 * small.shape[0]
    ink = [(drawn < 128).all(axis=2).sum() for drawn in (small, large)]
    assert ink[1] > 50 * ink[0]


def test_a_narrow_picture_gets_one_column_and_the_room_it_needs() -> None:
    drawn = legend.draw(ENTRIES, 1)
    assert drawn.shape[0] == len(ENTRIES) * 18 + 6
    widest = legend.draw([("pedestrian", (1, 2, 3))], 1).shape[1]
    assert drawn.shape[1] == widest
