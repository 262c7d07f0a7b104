"""The street network: its size, its alignment, its gradients."""

from __future__ import annotations

import pytest
import torch
from networks.gradients import check, randomise
from torch import nn

from upscore.geometry import CoordinateMap
from upscore.networks.cropping import coordinate_map
from upscore.networks.street import Street
from upscore.nn import ConvTranspose2d


def test_at_most_two_million_parameters() -> None:
    with torch.device("meta"):
        assert 1_000_000 < sum(p.numel() for p in Street().parameters()) <= 2_000_000


@pytest.mark.parametrize("size", [(360, 480), (45, 61), (1, 17)])
def test_any_size(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert Street().eval()(torch.empty(2, 3, *size)).shape == (2, 11, *size)


def test_all_upsampling_is_transposed_convolution_aligned_to_the_pixel() -> None:
    network = Street(width=4)
    ups = [m for m in network.modules() if isinstance(m, ConvTranspose2d)]
    downs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    pools = [m for m in network.modules() if isinstance(m, nn.MaxPool2d)]
    assert len(ups) == len(downs) == 4
    assert [m.stride for m in ups] == [(2, 2)] * 4
    assert coordinate_map([*downs, *ups]) == CoordinateMap.identity(2)
    assert coordinate_map([downs[0], *pools, *ups]) == CoordinateMap.identity(2)


def test_a_picture_may_end_anywhere() -> None:
    """What is cut off does not count: a picture continued by hand has the same scores."""
    network = randomise(Street(3, width=4))
    x = torch.randn(1, 3, 19, 30, dtype=torch.float64)
    continued = torch.cat([x, *[x[:, :, -1:]] * 13], 2)
    continued = torch.cat([continued, *[continued[..., -1:]] * 2], 3)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(continued)[:, :, :19, :30])


def test_gradients() -> None:
    check(Street(2, width=2), 1, 3, 15, 33)
