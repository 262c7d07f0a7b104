"""Folders of labelled pictures: what is read, and what is refused before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training import streets

from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.classes import Classes
from upscore.training.labelled import frequencies, read

CLASSES = Classes(("red", "green", "blue"), ((200, 60, 60), (60, 200, 60), (60, 60, 200)), 3)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return streets.write(tmp_path) / "train"


def test_pictures_and_labels_come_in_pairs(part: Path) -> None:
    (part / "images" / "notes.txt").write_text("not a picture")
    told: list[float] = []
    found = read(part, CLASSES, told.append)
    assert [item.name for item in found] == ["000", "001", "002", "003"]
    assert told == [0.25, 0.5, 0.75, 1.0]
    for seed, item in enumerate(found):
        picture, labels = streets.draw(seed, 40 + 2 * (seed % 2))
        np.testing.assert_array_equal(np.asarray(item.picture), np.asarray(picture))
        np.testing.assert_array_equal(np.asarray(item.labels), np.asarray(labels))


def test_shares_of_the_classes(part: Path) -> None:
    found = read(part, CLASSES)
    labels = np.concatenate([np.asarray(item.labels).ravel() for item in found])
    expected = [(labels == c).sum() / (labels < 3).sum() for c in range(3)]
    np.testing.assert_allclose(frequencies(found, CLASSES), expected)


def test_labels_may_have_a_palette_and_pictures_may_be_grey(part: Path) -> None:
    labels = Image.open(part / "labels" / "002.png")
    values = np.array(labels)
    labels.close()
    coloured = Image.fromarray(values)
    coloured.putpalette(streets.COLOURS.astype(np.uint8).tobytes())
    coloured.save(part / "labels" / "002.png")
    with Image.open(part / "images" / "002.png") as picture:
        picture.convert("L").save(part / "images" / "002.png")
    item = read(part, CLASSES)[2]
    np.testing.assert_array_equal(np.asarray(item.labels), values)
    assert item.picture.mode == "RGB"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _outside(path: Path) -> None:
    values = np.zeros((40, 56), np.uint8)
    values[3, 4:6] = 7
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("images/002.png", _cut, r"images/002.png: not a picture that can be read"),
        ("labels/002.png", _cut, r"labels/002.png: not a picture that can be read"),
        ("images/000.png", lambda p: p.write_bytes(b""), r"images/000.png: not a picture that can be read"),
        ("labels/002.png", _outside, r"labels/002.png: labels are 0 to 2, or 3 where .*; 2 pixels have others, as 7"),
        ("labels/002.png", Path.unlink, r"images/002.png: has no labels; expected .*labels/002.png"),
        (
            "labels/002.png",
            lambda p: Image.new("L", (56, 41)).save(p),
            r"labels/002.png: 56 x 41 labels for 002.png, which has 56 x 40 pixels",
        ),
        (
            "labels/002.png",
            lambda p: Image.new("RGB", (56, 40)).save(p),
            r"labels/002.png: labels are pictures of one channel, not of the mode RGB",
        ),
    ],
)
def test_a_damaged_file_is_named(part: Path, file: str, damage: Callable[[Path], object], message: str) -> None:
    damage(part / file)
    with pytest.raises(FileFormatError, match=message):
        read(part, CLASSES)


def test_an_empty_folder_is_refused(part: Path) -> None:
    for path in (part / "images").iterdir():
        path.unlink()
    message = r"data: expected pictures in train/images and val/images, got none in .*images; for example --data camvid"
    with pytest.raises(ArgumentError, match=message):
        read(part, CLASSES)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"data: expected a folder with train/images, .*, got no folder .*images"):
        read(tmp_path, CLASSES)
