"""The task of upscaling: what is held out, and that small and large patches show the same place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.super_resolution import SuperResolution
from upscore.training.upscaling import HELD_OUT, Upscaling, choose_held_out, luma, shrink

RANDOM = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three smooth pictures, so that a large patch can be told from its small one."""
    for i in range(3):
        coarse = Image.fromarray(RANDOM.integers(0, 256, (9, 11, 3), dtype=np.uint8))
        coarse.resize((97, 75), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_twenty_photographs_are_held_out() -> None:
    listed = HELD_OUT.read_text().split()
    assert len(listed) == len(set(listed)) == 20
    assert choose_held_out([*listed, "other.jpg"]) == set(listed)


def test_luma_is_cut_to_even_sizes_and_shrunk_to_eight_bits(folder: Path) -> None:
    y = luma(folder / "0.png")
    assert y.shape == (74, 96)
    assert 16 / 255 <= y.min() <= y.max() <= 235 / 255
    small = shrink(y) * 255
    assert small.shape == (37, 48)
    np.testing.assert_allclose(small, np.round(small), atol=1e-4)
    with pytest.raises(FileFormatError, match=r"notes.txt: not a picture that can be read"):
        luma(folder / "notes.txt")


def test_small_and_large_patches_show_the_same_place(folder: Path) -> None:
    network = SuperResolution(channels=2, depth=1)
    task = Upscaling(folder, network, held_out=["1.png"], batch_size=16, patch=6, scales=(1.0, 0.75))
    assert task.names == ["0.png", "2.png"]
    assert [y.shape for _, y in task.validation] == [(74, 96)]
    assert len(task.photographs) == 4
    inputs, targets = task.batch(torch.Generator().manual_seed(0))
    side = 6 + 2 * network.halo
    assert inputs.shape == (16, 1, side, side)
    assert targets.shape == (16, 1, 12, 12)
    inner = inputs[..., network.halo : -network.halo, network.halo : -network.halo]
    means = torch.nn.functional.avg_pool2d(targets, 2)
    assert (inner - means).abs().max() < 0.02 < inner.std()


def test_the_same_generator_gives_the_same_batch(folder: Path) -> None:
    task = Upscaling(folder, SuperResolution(2, 1), patch=6)
    one, same, other = (task.batch(torch.Generator().manual_seed(seed))[0] for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"data: expected a folder of at least two photographs of 132 x 132 pixels"):
        Upscaling(tmp_path)
