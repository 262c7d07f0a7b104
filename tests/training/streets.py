"""Tiny streets drawn by chance: coloured bands with noise, and their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [0, 0, 0]])
"""Of the classes 0 to 2, and of void, 3."""

TABLE = '{"names": ["red", "green", "blue"], "colours": [[200, 60, 60], [60, 200, 60], [60, 60, 200]], "void": 3}'


def draw(seed: int, height: int = 40, width: int = 56) -> tuple[Image.Image, Image.Image]:
    """A picture and its labels: three bands of random heights, a block of void."""
    random = np.random.default_rng(seed)
    edges = np.sort(random.integers(4, height - 4, 2))
    labels = np.digitize(np.arange(height), edges)[:, None].repeat(width, 1)
    if seed % 2:
        labels = 2 - labels
    top, left = random.integers(0, height - 6), random.integers(0, width - 6)
    labels[top : top + 6, left : left + 6] = 3
    pixels = np.clip(COLOURS[labels] + random.normal(0, 20, (height, width, 3)), 0, 255)
    return Image.fromarray(pixels.astype(np.uint8)), Image.fromarray(labels.astype(np.uint8))


def write(folder: Path, train: int = 4, validation: int = 2) -> Path:
    """The folder with ``train`` and ``val``, pictures of different sizes, and the table ``classes.json``."""
    for part, seeds in (("train", range(train)), ("val", range(100, 100 + validation))):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
        for seed in seeds:
            picture, labels = draw(seed, 40 + 2 * (seed % 2))
            picture.save(folder / part / "images" / f"{seed:03}.png")
            labels.save(folder / part / "labels" / f"{seed:03}.png")
    (folder / "classes.json").write_text(TABLE)
    return folder
