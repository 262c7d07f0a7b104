"""Photographs of even contrast, cut into squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upscore.errors import ArgumentError, FileFormatError
from upscore.training.contrast import crops, grey, normalized


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def save(folder: Path, name: str, height: int, width: int, seed: int = 0) -> Path:
    path = folder / name
    Image.fromarray((noise(height, width, seed) * 255).numpy().astype(np.uint8)).save(path)
    return path


def test_contrast_becomes_even() -> None:
    """Quiet on the left, loud on the right, dark to bright: afterwards the same mean and deviation everywhere."""
    plane = noise(60, 90) * torch.linspace(0.3, 1, 90, dtype=torch.float64) + torch.linspace(
        0, 3, 90, dtype=torch.float64
    )
    done = normalized(plane)
    for part in (done[:, 9:45], done[:, 45:81]):
        assert part.mean().abs() < 0.03
        assert 0.7 < part.std() < 1.1
    torch.testing.assert_close(normalized(5 * plane + 2), done)


def test_at_a_pixel_it_is_what_the_definition_says() -> None:
    plane, sigma = noise(30, 40), 2.0
    y, x = torch.meshgrid(*[torch.arange(-6, 7, dtype=torch.float64)] * 2, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    window /= window.sum()

    def mean(of: torch.Tensor, row: int, column: int) -> torch.Tensor:
        return (of[row - 6 : row + 7, column - 6 : column + 7] * window).sum()

    rows, columns = range(12, 18), range(12, 28)
    centred = torch.zeros_like(plane)
    for row in range(6, 24):
        for column in range(6, 34):
            centred[row, column] = plane[row, column] - mean(plane, row, column)
    deviation = torch.tensor([[mean(centred**2, row, column).sqrt() for column in columns] for row in rows])
    expected = centred[12:18, 12:28] / deviation
    done = normalized(plane, sigma)[12:18, 12:28]
    ratio = done / expected  # 1 where the deviation counts, less where its mean over the picture is larger
    assert (ratio <= 1 + 1e-9).all()
    assert (ratio > 1 - 1e-9).any()
    assert (ratio < 1 - 1e-3).any()


def test_a_flat_picture_is_zero() -> None:
    assert normalized(torch.full((20, 30), 0.4)).abs().max() < 1e-3


def test_grey_has_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "colour.png"
    Image.fromarray(np.full((20, 31, 3), (255, 255, 0), np.uint8)).save(path)
    plane = grey(path, 0.5)
    assert plane.shape == (10, 16)
    torch.testing.assert_close(plane, torch.full((10, 16), 226 / 255))  # BT.601: 0.299 + 0.587 of 255


def test_squares_come_from_every_photograph_in_turn(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path, f"{i}.png", 20 + i, 25, seed=i)
    save(tmp_path, "small.jpg", 11, 40)
    (tmp_path / "notes.txt").write_text("not a picture")
    squares, names = crops(tmp_path, count=5, side=12, seed=4)
    assert squares.shape == (5, 1, 12, 12)
    assert sorted(names[:3]) == ["0.png", "1.png", "2.png"]
    assert names[3:] == names[:2]
    whole = normalized(grey(tmp_path / names[0]))
    windows = whole.unfold(0, 12, 1).unfold(1, 12, 1)
    assert (windows == squares[0, 0]).all((2, 3)).sum() == 1
    assert torch.equal(crops(tmp_path, count=5, side=12, seed=4)[0], squares)
    assert not torch.equal(crops(tmp_path, count=5, side=12, seed=5)[0], squares)


def test_a_folder_without_photographs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        crops(tmp_path, count=1, side=8)
    assert (
        str(caught.value)
        == f"photos: expected a folder of photographs, got {tmp_path} with none; for example --photos photos"
    )


def test_pictures_all_too_small_are_named(tmp_path: Path) -> None:
    save(tmp_path, "a.png", 10, 30)
    save(tmp_path, "b.png", 1, 1)
    with pytest.raises(ArgumentError) as caught:
        crops(tmp_path, count=1, side=8, scale=0.5)
    assert str(caught.value) == (
        "photos: expected photographs of 8 x 8 pixels or more after scaling by 0.5, "
        f"got {tmp_path} with none larger than 5; for example --crop 5"
    )


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nrubbish", None])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = save(tmp_path, "broken.png", 40, 40)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(FileFormatError, match=r"broken\.png: not a picture that can be read \("):
        crops(tmp_path, count=1, side=8)
