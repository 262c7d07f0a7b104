"""Pictures of filters and reconstructions."""

from __future__ import annotations

import numpy as np
import torch

from upscore.networks.deconvolutional import DeconvolutionalNetwork
from upscore.training import filter_pictures


def test_every_filter_has_its_place() -> None:
    network = DeconvolutionalNetwork((5,), size=4, sparsity=0.2)
    network.layers[0].weight.zero_()
    network.layers[0].weight[4, 0, 1, 2] = -0.5
    sheet = np.asarray(filter_pictures.filters(network, 0, columns=3, cell=8))
    assert sheet.shape == (2 * 12 + 4, 3 * 12 + 4)
    fifth = sheet[4 + 12 : 4 + 12 + 8, 4 + 12 : 4 + 12 + 8]
    assert (fifth[2:4, 4:6] == 0).all()  # row 1, column 2, twice as large
    assert (np.delete(fifth, (2, 3), axis=0) == 128).all()
    assert (sheet[4:12, 4:12] == 128).all()
    assert (sheet[16:24, 28:] == 255).all()  # no sixth


def test_the_filters_of_an_upper_layer_are_drawn_in_the_picture() -> None:
    network = DeconvolutionalNetwork((5, 3), size=(4, 3), sparsity=0.2, channels=2)
    assert filter_pictures.filters(network, 1, cell=1).size == (3 * (6 + 4) + 4, 6 + 8)


def test_reconstructions_stand_beside_the_picture() -> None:
    network = DeconvolutionalNetwork((5, 3), size=(4, 3), sparsity=0.2)
    images = torch.randn(2, 1, 20, 30, generator=torch.Generator().manual_seed(1))
    sheet = np.asarray(filter_pictures.reconstructions(network, images))
    assert sheet.shape == (2 * 24 + 4 + 14, 3 * 34 + 4)
    picture = sheet[18:38, 4:34].astype(float) / 127.5 - 1
    np.testing.assert_allclose(picture, images[0, 0] / images[0].abs().max(), atol=0.005)
    layer = sheet[42:62, 38:68].astype(float) / 127.5 - 1
    maps = network.layers[0].infer(images)
    said = (network.reconstruct(maps, 0)[1, 0] / images[1].abs().max()).clamp(-1, 1)
    np.testing.assert_allclose(layer, said, atol=0.005)
    upper = network.layers[1].infer(maps, sparsity=0.05)
    said = (network.reconstruct(upper)[0, 0] / images[0].abs().max()).clamp(-1, 1)
    np.testing.assert_allclose(sheet[18:38, 72:102].astype(float) / 127.5 - 1, said, atol=0.005)
