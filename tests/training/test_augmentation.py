"""Views: picture and labels show the same place, and the same draw shows the same view."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training import streets

from upscore.errors import ArgumentError
from upscore.training.augmentation import Augmentation
from upscore.training.labelled import Labelled

VOID = 3


def item(height: int = 60, width: int = 80) -> Labelled:
    """Every pixel has the colour of its class, without noise."""
    coarse = np.random.default_rng(0).integers(0, 3, (height // 10, width // 10), dtype=np.uint8)
    labels = coarse.repeat(10, 0).repeat(10, 1)
    return Labelled("a", Image.fromarray(streets.COLOURS[labels].astype(np.uint8)), Image.fromarray(labels))


def view(augmentation: Augmentation, size: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return augmentation(item(), size, VOID, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.7, 1.7), (0.5, 2.0), (0.4, 0.4)])
@pytest.mark.parametrize("size", [(32, 48), (59, 33), (80, 100)])
def test_picture_and_labels_show_the_same_place(scale: tuple[float, float], size: tuple[int, int]) -> None:
    for seed in range(5):
        picture, labels = view(Augmentation(scale=scale, light=0), size, seed)
        assert picture.shape == (3, *size)
        assert labels.shape == size
        nearest = (picture[..., None] - torch.tensor(streets.COLOURS[:3].T)[:, None, None]).square().sum(0).argmin(-1)
        known = labels != VOID
        agree = (nearest == labels)[known].float().mean()
        assert agree > 0.9  # all but the mixtures at the edges of blocks 10 pixels wide
        assert (picture[:, ~known] == 127).all()
        if scale[0] * min(60 / size[0], 80 / size[1]) > 1.1:
            assert known.all()


def test_what_lies_outside_is_void_and_the_whole_picture_is_in_view() -> None:
    picture, labels = view(Augmentation(scale=(0.5, 0.5), aspect=1, light=0, mirror=False), (50, 70), 0)
    rows, columns = (labels != VOID).nonzero().unbind(1)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (30, 40)
    assert len(rows) == 30 * 40
    assert picture.mean() != 127


def test_without_change_a_view_is_a_part_of_the_picture() -> None:
    whole = np.asarray(item().labels)
    _, labels = view(Augmentation(scale=(1, 1), aspect=1, light=0, mirror=False), whole.shape, 0)
    np.testing.assert_array_equal(labels, whole)
    mirrored = [view(Augmentation(scale=(1, 1), aspect=1, light=0), whole.shape, seed)[1].numpy() for seed in range(9)]
    kinds = [
        next(name for name, other in (("same", whole), ("mirrored", whole[:, ::-1])) if (m == other).all())
        for m in mirrored
    ]
    assert set(kinds) == {"same", "mirrored"}


def test_light_changes_colours_and_nothing_else() -> None:
    plain = view(Augmentation(light=0), (32, 48), 4)
    lit = view(Augmentation(light=0.4), (32, 48), 4)
    assert torch.equal(plain[1], lit[1])
    assert not torch.equal(plain[0], lit[0])
    assert 0 <= lit[0].min() <= lit[0].max() <= 255
    colours = {tuple(c) for c in lit[0].flatten(1).T[(plain[0] == 200).any(0).flatten()].round().int().tolist()}
    assert len(colours) <= 12  # the three classes' colours, each changed alike everywhere


def test_the_same_draw_shows_the_same_view() -> None:
    one, same, other = (view(Augmentation(), (32, 48), seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 1.0)}, r"scale: expected two positive numbers, the smaller first, got \(2.0, 1.0\)"),
        ({"scale": (0.0, 1.0)}, r"scale: expected two positive numbers"),
        ({"aspect": 0.9}, r"aspect: expected at least 1, got 0.9; for example aspect=1.1"),
        ({"light": 1.0}, r"light: expected at least 0 and below 1, got 1.0; for example light=0.3"),
    ],
)
def test_ranges_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Augmentation(**options)
