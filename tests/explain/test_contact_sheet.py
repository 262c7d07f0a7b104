"""The picture of projections and patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from upscore.explain.contact_sheet import draw
from upscore.explain.strongest import Activation, Look


def to_image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture.numpy().transpose(1, 2, 0) * 255).astype(np.uint8))


def look(at: tuple[int, int], size: tuple[int, int], channel: int) -> Look:
    """A red picture with a green pixel, at which alone the projection is not zero."""
    picture, projection = torch.zeros(3, 20, 30), torch.zeros(3, 20, 30)
    picture[0] = 1
    picture[:, at[0], at[1]] = torch.tensor([0.0, 1.0, 0.0])
    projection[channel, at[0] : at[0] + size[0], at[1] : at[1] + size[1]] = 2.0
    return Look(Activation(0, 7, (0, 0), 1.5), picture, projection)


@pytest.mark.parametrize(("order", "channel"), [("rgb", 0), ("bgr", 2)])
def test_projections_left_and_their_patches_right(order: str, channel: int) -> None:
    rows = [[look((3, 4), (5, 5), channel), look((18, 29), (2, 1), channel)]]
    sheet = np.asarray(draw(rows, to_image, order=order, cell=50))
    block = 2 * (50 + 4)
    assert sheet.shape == (4 + block + 16 + 4, 2 * block + 12, 3)
    top = 4 + 16
    assert (sheet[top : top + 50, 4:54] == [255, 128, 128]).all()  # positive in red, the whole patch
    # The second is smaller, and at the corner: its patch has the first's size and ends where the picture does.
    second = sheet[top : top + 50, 58:108]
    assert (second[:30] == 128).all()
    assert (second[30:, 40:] == [255, 128, 128]).all()
    assert (second[:, :40] == 128).all()
    left = 4 + block + 4
    assert (sheet[top : top + 10, left : left + 10] == [0, 255, 0]).all()
    assert (sheet[top + 10 : top + 50, left : left + 50] == [255, 0, 0]).all()
    other = sheet[top : top + 50, left + 54 : left + 104]
    assert (other[30:40, 40:] == [0, 255, 0]).all()
    assert (other[:30] == [255, 0, 0]).all()
