"""The kernels layers start from: what they do to an image, and what cannot be started."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from upscore import nn
from upscore.errors import ArgumentError


@pytest.mark.parametrize(("factor", "kernel"), [(1, 1), (2, 4), (3, 5), (4, 8)])
@pytest.mark.parametrize("groups", [1, 3])
def test_bilinear_interpolates(factor: int, kernel: int, groups: int) -> None:
    layer = nn.ConvTranspose2d(3, 3, kernel, factor, factor // 2, bias=False, groups=groups, dtype=torch.float64)
    assert nn.init.bilinear_(layer.weight, groups=groups) is layer.weight
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    exact = F.interpolate(x, scale_factor=factor, mode="bilinear")
    inside = (..., slice(factor, 4 * factor), slice(factor, 5 * factor))
    torch.testing.assert_close(layer(x)[inside], exact[inside])


def test_bilinear_takes_its_factor_from_each_axis() -> None:
    layer = nn.ConvTranspose2d(2, 2, (4, 5), (2, 3), (1, 1), bias=False)
    nn.init.bilinear_(layer.weight)
    x = torch.arange(20.0).reshape(1, 1, 4, 5).expand(1, 2, 4, 5)
    exact = F.interpolate(x, scale_factor=(2, 3), mode="bilinear")
    torch.testing.assert_close(layer(x)[..., 2:-2, 3:-3], exact[..., 2:-2, 3:-3])


@pytest.mark.parametrize("groups", [1, 2])
def test_nearest_repeats(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 4, (2, 3), (2, 3), bias=False, groups=groups)
    nn.init.nearest_(layer.weight, groups=groups)
    x = torch.randn(1, 4, 3, 5)
    assert torch.equal(layer(x), F.interpolate(x, scale_factor=(2, 3)))


@pytest.mark.parametrize(("kernel", "stride"), [((4, 6), (2, 3)), ((2, 3), (2, 1))])
def test_icnr_repeats_where_the_stride_divides(kernel: Any, stride: Any) -> None:
    layer = nn.ConvTranspose2d(4, 6, kernel, stride, bias=False, groups=2)
    nn.init.icnr_(layer.weight, stride=stride)
    small = layer.weight[:, :, :: stride[0], :: stride[1]]
    x = torch.randn(1, 4, 3, 5)
    exact = F.interpolate(F.conv_transpose2d(x, small, groups=2), scale_factor=stride)
    torch.testing.assert_close(layer(x), exact)
    assert float(layer.weight.detach().std()) > 0.01


@pytest.mark.parametrize(("kernel", "stride"), [((3, 5), (2, 2)), ((9, 4), (2, 3))])
def test_icnr_has_phases_of_equal_sum_where_it_does_not(kernel: Any, stride: Any) -> None:
    w = nn.init.icnr_(torch.empty(4, 3, *kernel, dtype=torch.float64), stride=stride)
    sums = [w[:, :, a :: stride[0], b :: stride[1]].sum((2, 3)) for a in range(stride[0]) for b in range(stride[1])]
    for phase in sums[1:]:
        torch.testing.assert_close(phase, sums[0])


def test_icnr_starts_from_the_initializer_that_is_given() -> None:
    w = nn.init.icnr_(torch.empty(1, 1, 4, 6), stride=2, initializer=torch.nn.init.ones_)
    assert torch.equal(w, torch.ones(1, 1, 4, 6))
    torch.manual_seed(0)
    first = nn.init.icnr_(torch.empty(2, 3, 4), stride=2)
    torch.manual_seed(0)
    assert torch.equal(first, nn.init.icnr_(torch.empty(2, 3, 4), stride=2))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda: nn.init.bilinear_(torch.empty(1, 1, 6, 6)), "weight: expected a kernel of 2f - f % 2 .*got 6"),
        (lambda: nn.init.bilinear_(torch.empty(2, 3, 4, 4)), "weight: expected as many output channels as the 2"),
        (lambda: nn.init.nearest_(torch.empty(4, 1, 2), groups=2), "weight: .*with groups=2, got 2"),
        (lambda: nn.init.icnr_(torch.empty(1, 1, 2, 3), stride=3), r"weight: expected a kernel of at least the stride"),
        (
            lambda: nn.init.bilinear_(torch.empty(4)),
            r"weight: expected \(C_in, C_out / groups, \*K\), got shape \(4,\)",
        ),
    ],
)
def test_refusals(fill: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        fill()
