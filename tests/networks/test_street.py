"""The street network: its size, its alignment, its gradients."""

from __future__ import annotations

import pytest
import torch
from networks.gradients import check, randomise
from safetensors.torch import load_file
from torch import nn

from upscore import networks
from upscore.errors import ArgumentError
from upscore.geometry import CoordinateMap
from upscore.networks.classes import CAMVID
from upscore.networks.cropping import coordinate_map
from upscore.networks.street import UPSAMPLINGS, Street, Upsampling

NETWORK = networks.find("street")


def test_at_most_two_million_parameters() -> None:
    with torch.device("meta"):
        assert 1_000_000 < sum(p.numel() for p in Street().parameters()) <= 2_000_000


@pytest.mark.parametrize("size", [(360, 480), (45, 61), (1, 17)])
def test_any_size(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert Street().eval()(torch.empty(2, 3, *size)).shape == (2, 11, *size)


def test_all_upsampling_is_transposed_convolution_aligned_to_the_pixel() -> None:
    network = Street(width=4)
    ups = [m for m in network.modules() if isinstance(m, nn.ConvTranspose2d)]
    downs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert len(ups) == len(downs) == 4
    assert [m.stride for m in ups] == [(2, 2)] * 4
    assert coordinate_map([*downs, *ups]) == CoordinateMap.identity(2)


@pytest.mark.parametrize("how", UPSAMPLINGS)
def test_every_upsampling_learns_at_any_size(how: Upsampling) -> None:
    network = Street(3, width=2, upsampling=how)
    network(torch.randn(2, 3, 19, 30)).square().sum().backward()
    ups = {name: p for name, p in network.named_parameters() if "upscore" in name}
    assert all(p.grad is not None and p.grad.any() for p in ups.values() if p.requires_grad)
    fixed = [name for name, p in ups.items() if not p.requires_grad]
    assert fixed == ([f"{up}upscore.1.weight" for up in ("up8.", "up4.", "up2.", "")] if how == "bilinear" else [])


def test_the_learned_upsampling_starts_as_an_interpolated_mixture() -> None:
    learned = Street(3, width=2).upscore
    interpolated = Street(3, width=2, upsampling="bilinear").upscore
    assert isinstance(learned, nn.ConvTranspose2d)
    assert isinstance(interpolated, nn.Sequential)
    mixture, fixed = interpolated
    assert isinstance(mixture, nn.Conv2d)
    x = torch.randn(1, 2, 5, 7)
    with torch.no_grad():
        mixture.weight.copy_((learned.weight.sum((2, 3)) / 4).T[:, :, None, None])
        torch.testing.assert_close(learned(x), fixed(mixture(x)))
        enlarged = nn.functional.interpolate(mixture(x), scale_factor=2, mode="bilinear")
        torch.testing.assert_close(learned(x)[..., 1:-1, 1:-1], enlarged[..., 1:-1, 1:-1])


def test_an_unknown_upsampling() -> None:
    expected = "upsampling: expected one of learned, bilinear, nearest-conv, pixel-shuffle, got 'cubic'"
    with pytest.raises(ArgumentError, match=expected):
        Street(upsampling="cubic")  # type: ignore[arg-type]


def test_a_picture_may_end_anywhere() -> None:
    """What is cut off does not count: a picture continued by hand has the same scores."""
    network = randomise(Street(3, width=4))
    x = torch.randn(1, 3, 19, 30, dtype=torch.float64)
    continued = torch.cat([x, *[x[:, :, -1:]] * 13], 2)
    continued = torch.cat([continued, *[continued[..., -1:]] * 2], 3)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(continued)[:, :, :19, :30])


@pytest.mark.parametrize(("upsampling", "training"), [*((how, True) for how in UPSAMPLINGS), ("learned", False)])
def test_gradients(upsampling: Upsampling, training: bool) -> None:
    check(Street(2, width=2, dropout=0, upsampling=upsampling), 2, 3, 15, 33, training=training)


@pytest.mark.parametrize("how", UPSAMPLINGS)
def test_folding_keeps_the_scores(how: Upsampling) -> None:
    network = Street(3, width=2, upsampling=how)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")) or (tensor.dim() == 1 and tensor.is_floating_point()):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    network, x = network.double().eval(), torch.randn(2, 3, 19, 30, dtype=torch.float64)
    expected = network(x)
    folded = network.fold()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), expected)


def test_the_bundled_weights_give_the_stored_output() -> None:
    network, pair = NETWORK.load(), load_file(NETWORK.pair)
    assert not network.training
    torch.testing.assert_close(network(pair["input"]), pair["output"], rtol=1e-4, atol=1e-4)


def test_the_card_belongs_to_the_weights() -> None:
    card, bundled = NETWORK.card(), load_file(NETWORK.weights)
    assert bundled.keys() == Street().state_dict().keys()
    assert card["parameters"] == sum(p.numel() for p in Street().parameters())
    assert NETWORK.weights.stat().st_size <= 8_000_000
    assert {"data", "licence", "limits", "command", "steps", "minutes", "commit", "machine", "date"} <= set(card)
    assert tuple(card["validation IoU"]) == CAMVID.names
    assert card["validation"]["mean IoU"] == pytest.approx(sum(card["validation IoU"].values()) / 11, abs=2e-4)
