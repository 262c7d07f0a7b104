"""What other devices run, on the CPU: torch's kernels in the normal form agree with the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from upscore.geometry import Geometry
from upscore.nn import fallback, operators

# Geometry, groups, input size: crops that torch can say, that it cannot, and negative ones.
CASES: list[tuple[Geometry, int, tuple[int, ...]]] = [
    (Geometry(5, 3, 1, ((1, -1),)), 2, (4,)),
    (Geometry((3, 2), (2, 3), (2, 1), ((1, 0), (0, -2))), 2, (3, 4)),
    (Geometry((3, 4), (2, 1), (1, 2), ((0, 1), (3, 1))), 1, (4, 3)),
    (Geometry((2, 3), (3, 2), 1, ((-2, -4), (1, -5))), 3, (2, 3)),
    (Geometry((2, 1, 3), (1, 2, 2), 1, ((1, 0), (-1, 0), (0, 2))), 1, (3, 2, 4)),
]


def operands(geometry: Geometry, groups: int, n: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    c_in, share = 2 * groups, 3
    shapes = (
        (2, c_in, *n),
        (c_in, share, *geometry.kernel),
        (share * groups,),
        (2, share * groups, *geometry.output_size(n)),
    )
    x, w, bias, y = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return x, w, bias, y


def terms(geometry: Geometry, groups: int) -> tuple[Any, ...]:
    before, after = ([pair[side] for pair in geometry.crop] for side in (0, 1))
    return list(geometry.stride), list(geometry.dilation), before, after, groups


@pytest.mark.parametrize(("geometry", "groups", "n"), CASES)
def test_agrees_with_the_engine(geometry: Geometry, groups: int, n: tuple[int, ...]) -> None:
    x, w, bias, y = operands(geometry, groups, n)
    how = terms(geometry, groups)
    for b in (bias, None):
        torch.testing.assert_close(
            fallback.conv_transpose(x, w, b, *how), operators.conv_transpose(x, w, b, *how, False)
        )
    torch.testing.assert_close(fallback.input_gradient(y, w, *how), operators.input_gradient(y, w, *how))
    torch.testing.assert_close(
        fallback.weight_gradient(x, y, geometry.kernel, *how), operators.weight_gradient(x, y, geometry.kernel, *how)
    )


@pytest.mark.parametrize(("geometry", "groups", "n"), CASES)
def test_is_differentiable(geometry: Geometry, groups: int, n: tuple[int, ...]) -> None:
    x, w, bias, _ = (t.requires_grad_() for t in operands(geometry, groups, n))
    how = terms(geometry, groups)
    run = lambda *tensors: fallback.conv_transpose(*tensors, *how)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, w, bias), fast_mode=True)


def test_operators_of_dtypes_the_engine_does_not_compute() -> None:
    geometry, groups, n = CASES[3]
    how = terms(geometry, groups)
    x, w, bias, y = operands(geometry, groups, n)
    turned = operators.conv_transpose(x * 1j, w * 1j, bias + 0j, *how, False)
    torch.testing.assert_close(turned.real, operators.conv_transpose(-x, w, bias, *how, False))
    turned = operators.input_gradient(y * 1j, w * 1j, *how)
    torch.testing.assert_close(turned.real, operators.input_gradient(-y, w, *how))
