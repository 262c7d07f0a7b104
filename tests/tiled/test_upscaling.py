"""Picture files through a network: colours, alpha, depth, seams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from upscore.networks import bicubic
from upscore.tiled import upscaling
from upscore.tiled.reading import read
from upscore.tiled.upscaling import upscale_file

RANDOM = np.random.default_rng(0)


class Bicubic:
    """A network that only interpolates: then the whole pipeline must be bicubic, whatever the colours."""

    factor, halo = 2, 3

    def forward_valid(self, x: Tensor) -> Tensor:
        height, width = 2 * x.shape[-2], 2 * x.shape[-1]
        return torch.from_numpy(bicubic.resize(x.numpy(), height, width))[..., 6:-6, 6:-6]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_every_channel_is_upscaled_in_bands_without_seams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(upscaling, "_BAND_PIXELS", 20 * 16)
    image = Image.fromarray(RANDOM.integers(60, 196, (45, 20, len(mode)), dtype=np.uint8).squeeze())
    image.save(tmp_path / "small.png")
    fractions: list[float] = []
    done = upscale_file(Bicubic(), tmp_path / "small.png", tmp_path / "big.png", tick=fractions.append)
    assert done == {"width": 40, "height": 90, "channels": len(mode), "bits": 8, "notes": []}
    assert fractions == [16 / 45, 32 / 45, 1]
    planes = np.asarray(image, np.float64).reshape(45, 20, len(mode)).transpose(2, 0, 1)
    expected = bicubic.resize(planes, 90, 40).clip(0, 255).transpose(1, 2, 0)
    result = np.asarray(Image.open(tmp_path / "big.png")).reshape(90, 40, len(mode))
    inside = (slice(6, -6), slice(6, -6))  # at the border the network repeats pixels where bicubic mirrors them
    np.testing.assert_allclose(result[inside], expected[inside], atol=0.51)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_stay_sixteen(tmp_path: Path, channels: int) -> None:
    values = RANDOM.integers(20000, 40000, (12, 15, channels), dtype=np.uint16)
    small = tmp_path / "small.tif"
    with small.open("wb") as file:
        writer = upscaling.open_writer(small, file, upscaling.Format(15, 12, channels, 16))
        writer.write(values)
        writer.close()
    done = upscale_file(Bicubic(), small, tmp_path / "big.png")
    assert (done["bits"], done["notes"]) == (16, [])
    result = 65535 * read(tmp_path / "big.png").rows(0, 24)
    expected = bicubic.resize(values.transpose(2, 0, 1).astype(np.float64), 24, 30)
    np.testing.assert_allclose(result[:, 6:-6, 6:-6], expected[:, 6:-6, 6:-6], atol=0.6)
    done = upscale_file(Bicubic(), small, tmp_path / "big.webp")
    assert done["notes"] == ["16 bits a channel became 8, all that .webp holds"]


def test_the_profile_and_exif_go_along(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    small = tmp_path / "small.jpg"
    Image.new("RGB", (8, 5), "red").save(small, exif=exif, icc_profile=b"profile")
    for name in ("big.png", "big.jpg", "big.webp", "big.tif"):
        done = upscale_file(Bicubic(), small, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.size == (10, 16)  # turned upright
            assert image.info["icc_profile"] == b"profile"
            if name == "big.tif":
                assert done["notes"] == ["EXIF was left out: upscore writes none into TIFF"]
            else:
                assert dict(image.getexif()) == {0x010F: "Maker"}
