"""What a deconvolutional network has learned, as pictures: its filters, and photographs as its layers say them."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from upscore.networks.deconvolutional import DeconvolutionalNetwork

__all__ = ["filters", "reconstructions"]

_GAP, _TITLE = 4, 14
_PAPER, _INK = 255, 40


def filters(network: DeconvolutionalNetwork, layer: int, *, columns: int = 8, cell: int = 44) -> Image.Image:
    """What one spike in each map of ``layer`` (from 0) is in the picture, ``columns`` in a row.

    Grey is zero and every filter's scale its own. ``cell`` is the least side of one, in pixels. Networks that see
    several channels are drawn by their mean.
    """
    atoms = network.atoms(layer).mean(1)
    zoom = max(1, round(cell / atoms.shape[-1]))
    side = zoom * atoms.shape[-1] + _GAP
    columns = min(columns, len(atoms))
    sheet = Image.new("L", (columns * side + _GAP, math.ceil(len(atoms) / columns) * side + _GAP), _PAPER)
    for number, atom in enumerate(atoms):
        image = _grey(atom, float(atom.abs().max()))
        y, x = divmod(number, columns)
        large = image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST)
        sheet.paste(large, (_GAP + x * side, _GAP + y * side))
    return sheet


@torch.no_grad()
def reconstructions(network: DeconvolutionalNetwork, images: Tensor) -> Image.Image:
    """A row for each of ``images`` (N, C, H, W): the picture, then what the maps of each layer say it is.

    Above the lowest layer, maps are inferred with a quarter of the sparsity that the filters were learned with.
    """
    lowest, *upper = (layer.sparsity for layer in network.layers)
    shown = [images]
    for layer, maps in enumerate(network.infer(images, sparsity=[lowest, *(each / 4 for each in upper)])):
        shown.append(network.reconstruct(maps, layer))
    count, _, height, width = images.shape
    side = width + _GAP, height + _GAP
    sheet = Image.new("L", (len(shown) * side[0] + _GAP, count * side[1] + _GAP + _TITLE), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, batch in enumerate(shown):
        pen.text((_GAP + column * side[0], 1), f"layer {column}" if column else "photographs", _INK)
        for row in range(count):
            scale = float(images[row].abs().max())
            sheet.paste(_grey(batch[row].mean(0), scale), (_GAP + column * side[0], _TITLE + _GAP + row * side[1]))
    return sheet


def _grey(numbers: Tensor, scale: float) -> Image.Image:
    """``(H, W)`` from -scale to scale as black to white."""
    return Image.fromarray(np.rint(127.5 + 127.5 * (numbers / (scale or 1.0)).clamp(-1, 1).numpy()).astype(np.uint8))
