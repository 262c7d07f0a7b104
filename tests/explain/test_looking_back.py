"""The projection against autograd with the rectifier's backward replaced, which is another way to the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upscore.errors import ArgumentError, UpscoreError
from upscore.explain.looking_back import Recording
from upscore.nn import ConvTranspose2d


class Rectifier(torch.autograd.Function):
    """max(x, 0) forward; backward the signal is rectified, whatever x was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].clamp(min=0)


class ReplacedReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Rectifier.apply(x)


class Residual(nn.Module):
    """Two ways that meet: a sum in place, a concatenation, a crop."""

    def __init__(self, relu: Any, inplace: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=2), nn.Conv2d(4, 4, 3, padding=1, dilation=1)
        self.bn, self.relu, self.inplace = nn.BatchNorm2d(4), relu, inplace

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.b(self.relu(self.a(x))))
        if self.inplace:
            y += x
        else:
            y = y + x
        part = y[:, 1:3] * 0.5
        return torch.cat([self.relu(y), part], 1)[:, :, 1:, :-1]


def network(kind: str, replaced: bool) -> nn.Sequential:
    def relu() -> nn.Module:
        return ReplacedReLU() if replaced else nn.ReLU(inplace=kind == "inplace")

    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 4, (5, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), relu()]
    if kind == "overlapping":
        layers += [nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(4, 6, 3, groups=2, bias=False), relu(), nn.MaxPool2d(2, 1)]
    elif kind == "up":
        layers += [ConvTranspose2d(4, 3, (4, 3), stride=2, padding=(1, 0)), relu(), nn.AvgPool2d(2)]
        layers += [nn.ConvTranspose2d(3, 5, 3), relu()]
    else:
        layers += [nn.MaxPool2d((3, 2), (2, 3), ceil_mode=True), Residual(relu(), kind == "inplace")]
        layers += [nn.BatchNorm2d(6), nn.Dropout(0.5), relu(), nn.Conv2d(6, 2, (3, 5), padding="same")]
    return nn.Sequential(*layers).eval()


def with_statistics(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            module.running_mean, module.running_var = torch.linspace(-0.2, 0.3, n), torch.linspace(0.5, 2, n)
            module.weight.data = torch.linspace(-1, 1.5, n)
    return net


@pytest.mark.parametrize("kind", ["overlapping", "up", "residual", "inplace"])
def test_is_the_gradient_with_the_rectifiers_backward_replaced(kind: str) -> None:
    x = torch.randn(2, 3, 21, 26, generator=torch.Generator().manual_seed(1))
    variable = x.clone().requires_grad_()
    expected_output = with_statistics(network(kind, replaced=True))(variable)
    signal = torch.randn(expected_output.shape, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad(expected_output, variable, signal)
    net = with_statistics(network(kind, replaced=False))
    with Recording(x) as recording:
        output = net(x)
    torch.testing.assert_close(output, expected_output.detach(), rtol=1e-5, atol=1e-6)
    found = recording.project(output, signal)
    assert expected.abs().max() > 0
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    plain = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(kind, replaced=False)(plain).sum(), plain)
    assert (found - gradient).norm() > 0.1 * expected.norm()  # not the plain gradient


def test_the_weights_are_the_same_not_copies() -> None:
    layer = nn.Conv2d(1, 1, (3, 5), padding=1, bias=False)
    x = torch.randn(1, 1, 6, 7)
    with Recording(x) as recording:
        y = layer(x)
    signal = torch.randn(y.shape)
    before = recording.project(y, signal)
    with torch.no_grad():
        layer.weight *= 2
    torch.testing.assert_close(recording.project(y, signal), 2 * before)


def test_an_activation_in_the_middle_and_one_without_a_way_back() -> None:
    layer = nn.Conv2d(1, 2, 3, bias=False)
    x = torch.randn(1, 1, 5, 6)
    with Recording(x) as recording:
        middle = layer(x)
        torch.relu(middle).sum()
        shape = torch.zeros_like(x)
    signal = torch.zeros_like(middle)
    signal[0, 1, 2, 0] = 3.0
    found = recording.project(middle, signal)
    expected = torch.zeros_like(x)
    expected[0, 0, 2:5, 0:3] = 3 * layer.weight[1, 0].detach()
    torch.testing.assert_close(found, expected)
    assert not recording.project(shape, torch.ones_like(shape)).any()


def test_what_is_added_to_a_new_tensor_is_followed() -> None:
    x = torch.randn(1, 1, 2, 3)
    with Recording(x) as recording:
        y = torch.zeros_like(x).add_(x, alpha=3)
    signal = torch.randn(y.shape)
    for _ in range(2):  # looking back changes nothing
        torch.testing.assert_close(recording.project(y, signal), 3 * signal)
    torch.testing.assert_close(y, 3 * x)


def test_writing_into_a_part_is_refused_rather_than_lost() -> None:
    x = torch.randn(1, 2, 5, 6)
    with Recording(x), pytest.raises(UpscoreError, match=r"aten.mul_.Tensor writes into a part of a tensor or .* retu"):
        (x + 1)[:, :1].mul_(2)
    with Recording(x), pytest.raises(UpscoreError, match=r"aten.maximum.out writes into a part .* evaluation mode"):
        torch.maximum(x, x * 2, out=torch.empty_like(x))


def test_errors() -> None:
    x = torch.randn(1, 1, 5, 6)
    with Recording(x) as recording:
        y = x * 2
    with pytest.raises(ArgumentError, match=r"activations: expected a tensor that the recorded network made, got ano"):
        recording.project(torch.ones(3), torch.ones(3))
    with pytest.raises(ArgumentError, match=r"signal: expected the shape of activations, \(1, 1, 5, 6\), got \(1,\)"):
        recording.project(y, torch.ones(1))
