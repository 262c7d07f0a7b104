"""Pictures segmented: by a network that finds the strongest of red, green and blue, which is known without one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.classes import MEAN, SPREAD, Classes
from upscore.tiled import legend, segmenting
from upscore.tiled.reading import read

CLASSES = Classes(("red", "green", "blue"), ((200, 0, 0), (0, 200, 0), (0, 0, 200)), 3)


class Strongest(nn.Module):
    """Scores are the channels, as they were before they were normalised."""

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x * torch.tensor(SPREAD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        return self.seen


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A picture of coloured noise, 37 x 23."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(("side", "seen"), [(37, (23, 37)), (12, (7, 12)), (100, (62, 100)), (1, (1, 1))])
@pytest.mark.parametrize("band", [1, 100, 1 << 18])
def test_scores_are_interpolated_to_the_picture(
    noise: Path, side: int, seen: tuple[int, int], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenting, "_BAND_PIXELS", band)
    network, done = Strongest(), list[float]()
    found = segmenting.labels(network, read(noise), side, done.append)
    assert network.seen.shape[2:] == seen
    expected = nn.functional.interpolate(network.seen, (23, 37), mode="bilinear").argmax(1)[0]
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert done == sorted(done)
    assert done[-1] == 1


def test_at_its_own_size_a_picture_is_seen_as_it_is(noise: Path) -> None:
    network = Strongest()
    segmenting.labels(network, read(noise), 37)
    pixels = np.asarray(Image.open(noise)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(network.seen[0], pixels, atol=1e-6)


def test_a_side_of_nothing() -> None:
    with pytest.raises(ArgumentError, match="side: expected at least 1, got 0; for example side=720"):
        segmenting.labels(Strongest(), None, 0)  # type: ignore[arg-type]


def stripes(folder: Path, kind: str) -> Path:
    """A picture of 60 x 40, stored as ``kind``: the left half is red (grey kinds: dark), the right half blue."""
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, :30, 0], rgb[:, 30:, 2] = 240, 250
    image = Image.fromarray(rgb)
    path = folder / f"{kind}.png"
    if kind in ("turned.tif", "turned.png"):
        path = folder / kind
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    elif kind == "grey16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        image = image.convert(kind)
        if kind in ("LA", "RGBA"):
            image.putalpha(100)
        image.save(path)
    return path


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "LA", "grey16", "turned.tif", "turned.png"])
def test_classes_are_drawn_over_the_picture(tmp_path: Path, kind: str) -> None:
    source, target = stripes(tmp_path, kind), tmp_path / "out.png"
    result = segmenting.draw_file(Strongest(), CLASSES, source, target, side=60)
    drawn = np.asarray(Image.open(target)).astype(int)
    below = legend.draw([("green 50%", (0, 0, 0))] * len(result["classes"]), 60)
    assert drawn.shape[0] == result["height"] == 40 + below.shape[0]
    assert drawn.shape[1] == result["width"] >= 60
    alpha = kind in ("LA", "RGBA")
    assert drawn.shape[2] == (4 if alpha else 3)
    grey = kind in ("L", "LA", "grey16")
    left, right = ((72, 72, 72), (28, 28, 28)) if grey else ((240, 0, 0), (0, 0, 250))
    colours = (CLASSES.colours[0], CLASSES.colours[0 if grey else 2])  # of equals the first is the highest
    for x, photo, colour in ((10, left, colours[0]), (50, right, colours[1])):
        assert np.abs(drawn[20, x, :3] - (np.array(photo) + colour) / 2).max() <= 1
    if alpha:
        assert set(drawn[:40, :60, 3].ravel()) == {100}
        assert (drawn[40:, :, 3] == 255).all()
    assert (drawn[:40, 60:] == 255).all()
    assert result["classes"] == ({"red": 1.0} if grey else {"red": 0.5, "blue": 0.5})
    assert result["notes"] == (["drawn with 8 bits a channel"] if kind == "grey16" else [])
    json.dumps(result)


def test_labels_are_written_as_numbers_with_colours(tmp_path: Path) -> None:
    source, target = stripes(tmp_path, "RGB"), tmp_path / "labels.png"
    result = segmenting.label_file(Strongest(), CLASSES, source, target, side=60)
    with Image.open(target) as image:
        assert (image.mode, image.size) == ("P", (60, 40))
        numbers = np.asarray(image)
        assert np.array_equal(np.asarray(image.convert("RGB")), CLASSES.draw(numbers))
    assert (numbers[:, :29] == 0).all()
    assert (numbers[:, 31:] == 2).all()
    assert result == {"width": 60, "height": 40, "classes": {"red": 0.5, "blue": 0.5}, "notes": []}


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    source = stripes(tmp_path, "RGBA")
    expected = "output: expected a name ending in .png for labels, got a.jpg; for example a.png"
    with pytest.raises(ArgumentError, match=expected):
        segmenting.label_file(Strongest(), CLASSES, source, tmp_path / "a.jpg")
    with pytest.raises(ArgumentError, match="output: expected a format that holds transparency"):
        segmenting.draw_file(Strongest(), CLASSES, source, tmp_path / "a.jpg")
    broken = tmp_path / "broken.png"
    broken.write_bytes(source.read_bytes()[:60])
    with pytest.raises(FileFormatError, match=r"broken.png: a damaged picture"):
        segmenting.draw_file(Strongest(), CLASSES, broken, tmp_path / "b.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["RGBA.png", "broken.png"]
