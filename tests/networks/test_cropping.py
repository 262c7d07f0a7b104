"""Alignment of paths, against the positions that impulses really take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.geometry import CoordinateMap
from upscore.networks.cropping import common, coordinate_map, crop_to, offset_of, shifted
from upscore.nn import ConvTranspose2d


def test_an_impulse_comes_out_where_the_map_says() -> None:
    layers = [
        nn.Conv2d(1, 1, (3, 5), padding=(4, 1), bias=False),
        nn.Conv2d(1, 1, (5, 3), stride=(2, 3), padding=(1, 0), bias=False),
        ConvTranspose2d(1, 1, (4, 6), stride=(2, 3), padding=(1, 2), bias=False),
    ]
    for layer in layers:
        layer.weight.data.fill_(1.0)  # symmetric, so that the centre of mass is the centre
    network = nn.Sequential(*layers)
    x = torch.zeros(1, 1, 25, 29, requires_grad=True)
    y = network(x)
    spot = (14, 15)
    (grad,) = torch.autograd.grad(y[0, 0, spot[0] : spot[0] + 2, spot[1] : spot[1] + 3].sum(), x)
    weights = grad[0, 0] / grad.sum()
    centre = ((weights.sum(1) * torch.arange(25)).sum().item(), (weights.sum(0) * torch.arange(29)).sum().item())
    # A whole stride of outputs has the mean position of its phases.
    expected = coordinate_map(layers)((spot[0], spot[1]))
    last = coordinate_map(layers)((spot[0] + 1, spot[1] + 2))
    assert centre == pytest.approx([float(a + b) / 2 for a, b in zip(expected, last, strict=True)], abs=1e-5)


def test_common_crops_whichever_is_larger() -> None:
    a, b = torch.arange(12).view(1, 1, 3, 4), torch.arange(20).view(1, 1, 5, 4)
    cut, other = common(a, b, (-1, 2))
    assert cut.tolist() == [[[[2, 3], [6, 7], [10, 11]]]]
    assert other.tolist() == [[[[4, 5], [8, 9], [12, 13]]]]
    path = shifted(CoordinateMap.identity(2), (-1, 2))
    assert path((0, 0)) == (0, 2)
    assert crop_to(b, (2, 3), (1, 1)).tolist() == [[[[5, 6, 7], [9, 10, 11]]]]


def test_errors() -> None:
    with pytest.raises(ArgumentTypeError, match=r"layers: expected convolutions, .*, got ReLU; for example nn.Conv2d"):
        coordinate_map([nn.ReLU()])
    half = coordinate_map([nn.MaxPool2d(2), ConvTranspose2d(1, 1, 3, stride=2)])
    with pytest.raises(ArgumentError, match=r"path: expected .* whole pixels, got 1/2 x 1/2; for example kernels of"):
        offset_of(half, CoordinateMap.identity(2))
