"""U-Net: the paper's sizes and crops, and its layers written out with torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks.gradients import check, randomise
from torch import Tensor

from upscore.errors import ArgumentError
from upscore.networks.unet import UNet


def test_the_papers_sizes_and_crops() -> None:
    with torch.device("meta"):
        network = UNet()
        sizes = []
        for up in network.up:
            up.register_forward_hook(lambda _m, _i, y: sizes.append(tuple(y.shape[1:])))
        assert network(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    assert sizes == [(512, 56, 56), (256, 104, 104), (128, 200, 200), (64, 392, 392)]
    assert network.crops == [(4, 4), (16, 16), (40, 40), (88, 88)]


def middle(x: Tensor, like: Tensor) -> Tensor:
    top, left = ((a - b) // 2 for a, b in zip(x.shape[2:], like.shape[2:], strict=True))
    return x[:, :, top : top + like.shape[2], left : left + like.shape[3]]


@pytest.mark.parametrize("padded", [False, True])
def test_is_its_layers_in_torch(padded: bool) -> None:
    network = randomise(UNet(3, channels=2, padded=padded, width=2, depth=2))
    state = network.state_dict()

    def two(name: str, x: Tensor) -> Tensor:
        for i in (0, 2):
            x = F.relu(F.conv2d(x, state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"], padding=int(padded)))
        return x

    x = torch.randn(1, 2, 60, 76, dtype=torch.float64)
    fine = two("down.0", x)
    coarse = two("down.1", F.max_pool2d(fine, 2))
    y = two("down.2", F.max_pool2d(coarse, 2))
    for i, skip in enumerate((coarse, fine)):
        y = F.conv_transpose2d(y, state[f"up.{i}.weight"], state[f"up.{i}.bias"], stride=2)
        y = two(f"merge.{i}", torch.cat([middle(skip, y), y], 1))
    expected = F.conv2d(y, state["score.weight"], state["score.bias"])
    assert expected.shape[2:] == (x.shape[2:] if padded else (20, 36))
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("size", [(37, 51), (1, 2), (64, 48)])
def test_padded_keeps_any_size(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert UNet(padded=True)(torch.empty(1, 1, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients(padded: bool) -> None:
    check(UNet(2, padded=padded, width=2, depth=2), 1, 1, 45, 50)


def test_a_picture_that_is_too_small() -> None:
    network = UNet(width=1)
    assert network(torch.zeros(1, 1, 188, 189)).shape == (1, 2, 4, 4)
    with pytest.raises(ArgumentError, match=r"x: expected at least 188 rows and columns, got \(187, 200\); for exampl"):
        network(torch.zeros(1, 1, 187, 200))
