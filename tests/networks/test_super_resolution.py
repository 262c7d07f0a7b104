"""The network ``upscale-x2``: its shape, its beginnings, its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks.gradients import check
from safetensors.torch import load_file
from torch import nn

from upscore import networks
from upscore.networks import bicubic
from upscore.networks.super_resolution import SuperResolution
from upscore.nn import ConvTranspose2d

NETWORK = networks.find("upscale-x2")


def test_one_transposed_convolution_and_few_parameters() -> None:
    network = SuperResolution()
    assert sum(parameter.numel() for parameter in network.parameters()) <= 15_000
    (upsampling,) = (m for m in network.modules() if isinstance(m, ConvTranspose2d))
    assert upsampling.stride == (2, 2)
    assert min(upsampling.kernel_size) >= 4


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (12, 7)])
def test_doubles_any_size(size: tuple[int, int]) -> None:
    assert SuperResolution()(torch.rand(2, 1, *size)).shape == (2, 1, 2 * size[0], 2 * size[1])


def test_the_halo_is_exactly_the_receptive_field() -> None:
    network = SuperResolution()
    nn.init.normal_(network.upscore.weight)  # at first its outermost taps are zero
    halo = network.halo
    x = torch.rand(1, 1, 2 * halo + 1, 2 * halo + 1, requires_grad=True)
    network.forward_valid(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any(dim=2).all()
    assert (x.grad != 0).any(dim=3).all()


def test_starts_as_bicubic_plus_features_without_a_checkerboard() -> None:
    torch.manual_seed(0)
    network = SuperResolution()
    picture = torch.rand(1, 1, 9, 14)
    flat = network(torch.full((1, 1, 6, 8), 0.3)).detach()
    # A bicubic phase sums to one, and repetition gives every phase the same features: flat stays flat.
    np.testing.assert_allclose(flat, flat.mean(), rtol=1e-5)
    with torch.no_grad():
        network.upscore.weight[1:] = 0
    expected = bicubic.resize(picture.numpy(), 18, 28)
    inside = (..., slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(network(picture).detach().numpy()[inside], expected[inside], atol=1e-6)


def test_gradients() -> None:
    check(SuperResolution(), 2, 1, 7, 9)


def test_the_bundled_weights_give_the_stored_output() -> None:
    network = NETWORK.load()
    pair = load_file(NETWORK.pair)
    assert not network.training
    np.testing.assert_allclose(network(pair["input"]), pair["output"], atol=1e-5)


def test_the_card_belongs_to_the_weights() -> None:
    card = NETWORK.card()
    assert card["parameters"] == sum(tensor.numel() for tensor in load_file(NETWORK.weights).values()) <= 15_000
    assert {"data", "commit", "command", "minutes", "machine", "date", "licence", "psnr"} <= set(card)
    assert card["psnr"]["network"] >= card["psnr"]["bicubic"] + 1.8
