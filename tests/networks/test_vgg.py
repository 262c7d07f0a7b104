"""Weights from elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upscore.errors import ArgumentError
from upscore.networks import vgg
from upscore.nn import ConvTranspose2d


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc6 = nn.Conv2d(3, 4, (2, 5))
        self.upscore = ConvTranspose2d(2, 2, 4, stride=2, groups=2, bias=False)
        self.relu = nn.ReLU()


def test_old_shapes_are_the_same_numbers() -> None:
    network = Tiny()
    weight, bias = torch.randn(1, 1, 4, 30), torch.randn(1, 1, 1, 4)
    assert vgg.load(network, {"fc6": [weight.numpy(), bias.numpy()], "fc8": [torch.ones(2)]}) == ["upscore"]
    x = torch.randn(1, 3, 2, 5)
    expected = nn.functional.linear(x.flatten(1), weight[0, 0], bias.flatten())
    torch.testing.assert_close(network.fc6(x).flatten(1), expected)


def test_a_diagonal_upsampling_becomes_channelwise() -> None:
    network, dense = Tiny(), torch.zeros(2, 2, 4, 4)
    dense[0, 0], dense[1, 1] = torch.randn(2, 4, 4)
    assert vgg.load(network, {"upscore": [dense]}) == ["fc6"]
    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(network.upscore(x), nn.functional.conv_transpose2d(x, dense, stride=2))


def test_what_does_not_fit_changes_nothing() -> None:
    network = Tiny()
    before = network.fc6.weight.clone()
    good = [torch.ones(4, 3, 2, 5), torch.ones(4)]
    with pytest.raises(ArgumentError, match=r"without mixing of channels, got one that mixes .* channelwise=False"):
        vgg.load(network, {"fc6": good, "upscore": [torch.ones(2, 2, 4, 4)]})
    with pytest.raises(ArgumentError, match=r"shape \(4, 3, 2, 5\) for layer 'fc6', got \(4, 3, 5, 2\)"):
        vgg.load(network, {"fc6": [torch.ones(4, 3, 5, 2), torch.ones(4)]})
    with pytest.raises(ArgumentError, match="blobs: expected 2 for layer 'fc6', one for each parameter, got 1"):
        vgg.load(network, {"fc6": good[:1]})
    assert torch.equal(network.fc6.weight, before)


def test_a_state_that_is_not_torchvisions() -> None:
    with pytest.raises(ArgumentError, match=r"state: expected a state_dict of torchvision's vgg16, got no 'features.0"):
        vgg.from_torchvision({"conv1.weight": torch.ones(1)})
