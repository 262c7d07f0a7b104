"""What a network that segments tells apart: classes, their names and colours; and how pictures become its input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from upscore.errors import FileFormatError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CAMVID", "MEAN", "SPREAD", "Classes", "normalised"]

MEAN = (0.485, 0.456, 0.406)
SPREAD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels (R, G, B in [0, 1]), as torchvision's encoders expect them."""


@dataclass(frozen=True)
class Classes:
    """The table of a data set's classes: label ``i`` is ``names[i]``, drawn in ``colours[i]``; ``void`` is no class."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    void: int

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def read(cls, path: Path) -> Classes:
        """The table in a JSON file: ``{"names": ["road", ...], "colours": [[128, 64, 128], ...], "void": 255}``.

        Raises FileFormatError when it is none.
        """
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            names = tuple(str(name) for name in table["names"])
            colours = tuple((int(r), int(g), int(b)) for r, g, b in table["colours"])
            void = int(table["void"])
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(f"{path}: not a table of names, colours and void ({error!r})") from error
        if not 0 < len(names) == len(colours) or not len(names) <= void <= 255:
            got = f"{len(names)} names, {len(colours)} colours, void {void}"
            raise FileFormatError(f"{path}: expected a colour for each name and a void above them all, got {got}")
        return cls(names, colours, void)

    def draw(self, labels: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Labels ``(H, W)`` in their colours, ``(H, W, 3)``; whatever is no class is black.

        >>> CAMVID.draw(np.array([[8, 11]])).tolist()
        [[[64, 0, 128], [0, 0, 0]]]
        """
        table = np.zeros((len(self) + 1, 3), np.uint8)
        table[:-1] = self.colours
        return table[np.where((labels >= 0) & (labels < len(self)), labels, len(self))]


CAMVID = Classes(
    names=("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist"),
    colours=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    void=11,
)
"""The 11 classes of CamVid as SegNet's authors numbered them, in the colours they draw them in; 11 is unlabelled.

Brostow, Fauqueur, Cipolla 2009, "Semantic object classes in video"; Badrinarayanan, Kendall, Cipolla 2015, "SegNet".
"""


def normalised(pictures: Tensor) -> Tensor:
    """Pictures ``(N, 3, H, W)``, RGB of 0 to 255, as networks that segment want them: float32, mean 0, spread 1.

    >>> import torch
    >>> [round(v, 3) for v in normalised(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten().tolist()]
    [2.249, 2.429, 2.64]
    """
    pictures = pictures.float()
    mean, spread = (pictures.new_tensor(values).view(3, 1, 1) * 255 for values in (MEAN, SPREAD))
    return (pictures - mean) / spread
