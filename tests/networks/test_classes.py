"""Tables of classes: read, drawn, and pictures normalised for the networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from upscore.errors import FileFormatError
from upscore.networks.classes import CAMVID, MEAN, SPREAD, Classes, normalised

TABLE = {"names": ["road", "other"], "colours": [[1, 2, 3], [4, 5, 6]], "void": 255}


def test_camvid_has_eleven_classes_in_colours_of_their_own() -> None:
    assert len(CAMVID) == len(set(CAMVID.names)) == len(set(CAMVID.colours)) == CAMVID.void == 11


def test_labels_are_drawn_in_their_colours_and_the_rest_is_black() -> None:
    table = Classes(("a", "b"), ((9, 8, 7), (1, 2, 3)), 255)
    drawn = table.draw(np.array([[0, 1, 255], [2, -1, 0]]))
    assert drawn.dtype == np.uint8
    black = [0, 0, 0]
    assert drawn.tolist() == [[[9, 8, 7], [1, 2, 3], black], [black, black, [9, 8, 7]]]


def test_a_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(TABLE))
    assert Classes.read(path) == Classes(("road", "other"), ((1, 2, 3), (4, 5, 6)), 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": None}, r"classes.json: not a table of names, colours and void"),
        ({"colours": [[1, 2], [3, 4]]}, r"classes.json: not a table of names, colours and void"),
        ({"colours": [[1, 2, 3]]}, r"a void above them all, got 2 names, 1 colours, void 255"),
        ({"void": 1}, r"a void above them all, got 2 names, 2 colours, void 1"),
        ({"void": 256}, r"a void above them all, got 2 names, 2 colours, void 256"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({**TABLE, **change}))
    with pytest.raises(FileFormatError, match=message):
        Classes.read(path)


def test_text_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text("road, other")
    with pytest.raises(FileFormatError, match=r"classes.json: not a table of names, colours and void"):
        Classes.read(path)


def test_normalising_takes_each_channels_mean_away_and_divides_by_its_spread() -> None:
    pictures = torch.tensor([[10, 20], [100, 200], [0, 255]], dtype=torch.uint8).view(1, 3, 1, 2)
    found = normalised(pictures)
    for channel in range(3):
        expected = (pictures[0, channel, 0].numpy() / 255 - MEAN[channel]) / SPREAD[channel]
        np.testing.assert_allclose(found[0, channel, 0], expected, rtol=1e-5)
