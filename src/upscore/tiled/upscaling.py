"""A picture file upscaled into another: luma by the network, chroma and alpha bicubic, band by band."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upscore.files import replacing
from upscore.networks import bicubic
from upscore.networks.colour import rgb_to_ycbcr, ycbcr_to_rgb
from upscore.tiled import tiles
from upscore.tiled.reading import Picture, read
from upscore.tiled.writing import Format, depth_of, open_writer

__all__ = ["upscale_file", "upscale_rows"]

_BAND_PIXELS = 1 << 20
"""Pixels of the small picture that are worked on at a time; a band's floats take some 250 bytes a pixel."""


def upscale_rows(
    network: tiles.Valid, planes: NDArray[Any], top: int, bottom: int, first: int, height: int
) -> NDArray[np.float32]:
    """The band ``[top, bottom)`` of a picture of ``height`` rows, upscaled: ``(C, factor (bottom - top), factor W)``.

    ``planes`` is ``(C, last - first, W)`` in [0, 1], the rows that ``tiles.bands`` says; C is 1 (grey), 2 (grey and
    alpha), 3 (RGB) or 4 (RGB and alpha). The result is clipped to [0, 1].
    """
    factor, width = network.factor, planes.shape[2]
    colours = 3 if len(planes) > 2 else 1
    # Grey is the luma of R = G = B: brought to the swing of 16 to 235 that the network knows.
    ycbcr = rgb_to_ycbcr(planes[:3]) if colours == 3 else (16 + 219 * planes[:1]) / 255
    luma = tiles.upscale_band(network, ycbcr[0], top, bottom, first)
    others = np.concatenate([ycbcr[1:], planes[colours:]])
    others = bicubic.resize_axis(
        others, 1, height, factor * height, first=first, start=factor * top, stop=factor * bottom
    )
    others = bicubic.resize_axis(others, 2, width, factor * width)
    if colours == 3:
        large, others = ycbcr_to_rgb(np.concatenate([luma[None], others[:2]])), others[2:]
    else:
        large = (255 * luma[None] - 16) / 219
    return np.concatenate([large, others]).clip(0, 1).astype(np.float32, copy=False)


def upscale_file(
    network: tiles.Valid,
    source: Path,
    target: Path,
    *,
    quality: int = 95,
    tick: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Upscale the picture ``source`` into ``target``; the format is that of the target's name.

    16 bits a channel stay 16 in PNG and TIFF. ``tick`` is told the fraction that is done. The target appears when it
    is whole. Returns what was done: sizes, channels, bits, notes. Raises FileFormatError for a broken source and
    ArgumentError for a target that cannot hold the result.
    """
    picture = read(source)
    form = _format(network.factor, picture, target, quality)
    notes = list(picture.notes)
    if picture.bits > form.bits:
        notes.append(f"{picture.bits} bits a channel became {form.bits}, all that {target.suffix} holds")
    if form.exif and depth_of(target, 16) == 16 and target.suffix.lower() != ".png":
        notes.append("EXIF was left out: upscore writes none into TIFF")
    rows = min(max(_BAND_PIXELS // picture.width, 16), tiles.TILE[0])
    scale = 2**form.bits - 1
    dtype = np.uint16 if form.bits == 16 else np.uint8
    with replacing(target) as temporary, temporary.open("wb") as file:
        writer = open_writer(target, file, form)
        for top, bottom, first, last in tiles.bands(picture.height, network.halo, rows):
            large = upscale_rows(network, picture.rows(first, last), top, bottom, first, picture.height)
            writer.write(np.rint(scale * large).astype(dtype).transpose(1, 2, 0))
            tick(bottom / picture.height)
        writer.close()
    return {
        "width": form.width,
        "height": form.height,
        "channels": form.channels,
        "bits": form.bits,
        "notes": notes,
    }


def _format(factor: int, picture: Picture, target: Path, quality: int) -> Format:
    return Format(
        width=factor * picture.width,
        height=factor * picture.height,
        channels=picture.channels,
        bits=depth_of(target, picture.bits),
        icc=picture.icc,
        exif=picture.exif,
        quality=quality,
    )
