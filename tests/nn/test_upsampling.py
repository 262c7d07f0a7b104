"""Upsampling and convolution as one transposed convolution: exact up to rounding, borders included."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from upscore.nn.upsampling import saves_taps, upsampled_conv

CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def plain(x: Tensor, w: Tensor, bias: Tensor | None, factor: Any, before: Any, after: Any, *rest: Any) -> Tensor:
    """The same by repeating, padding and convolving."""
    for axis, f in enumerate(factor):
        x = x.repeat_interleave(f, 2 + axis)
    sides = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    y: Tensor = CONV[len(factor)](F.pad(x, sides), w, bias, 1, 0, *rest)
    return y


@st.composite
def cases(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]]:
    rank = draw(st.integers(1, 3))
    per_axis = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * rank))  # noqa: E731
    kernel, factor, dilation, n = per_axis(1, 4), per_axis(1, 4), per_axis(1, 2), per_axis(1, 4)
    # At least one output position; padding beyond the kernel's reach gives positions that hold the bias alone.
    before = tuple(p + d * (k - 1) for p, d, k in zip(per_axis(-1, 2), dilation, kernel, strict=True))
    before = tuple(max(0, p) for p in before)
    reach = [d * (k - 1) - f * m - lo for d, k, f, m, lo in zip(dilation, kernel, factor, n, before, strict=True)]
    after = tuple(max(0, r + 1, p) for r, p in zip(reach, per_axis(0, 4), strict=True))
    groups = draw(st.integers(1, 2))
    x = (draw(st.integers(1, 2)), groups * draw(st.integers(1, 3)), *n)
    w = (groups * draw(st.integers(1, 3)), x[1] // groups, *kernel)
    return x, w, (factor, before, after, dilation, groups)


@given(cases(), st.booleans())
def test_equals_repeating_and_convolving(case: Any, with_bias: bool) -> None:
    x_shape, w_shape, terms = case
    torch.manual_seed(0)
    x, w = torch.randn(x_shape, dtype=torch.float64), torch.randn(w_shape, dtype=torch.float64)
    bias = torch.randn(w_shape[0], dtype=torch.float64) if with_bias else None
    exact = plain(x, w, bias, *terms)
    y = upsampled_conv(x, w, bias, *terms)
    assert y.shape == exact.shape
    assert (y - exact).norm() <= 1e-14 * exact.norm() + 1e-14
    recorded = upsampled_conv(x.requires_grad_(), w, bias, *terms)
    assert recorded.requires_grad
    torch.testing.assert_close(recorded.detach(), exact)


@pytest.mark.parametrize("factor", range(1, 9))
def test_torch_repeats_exactly_by_these_factors(factor: int) -> None:
    x = torch.arange(4096.0).reshape(1, 1, -1)
    assert torch.equal(F.interpolate(x, scale_factor=float(factor)), x.repeat_interleave(factor, 2))


def test_notices_changed_weights() -> None:
    x, w = torch.randn(1, 2, 3, 4), torch.randn(3, 2, 3, 3)
    terms = (2, 3), (1, 0), (1, 2), (1, 1), 1
    for _ in range(3):
        torch.testing.assert_close(upsampled_conv(x, w, None, *terms), plain(x, w, None, *terms))
        w.mul_(2)


def test_saves_taps() -> None:
    assert saves_taps((2, 2), (3, 3), (1, 1))
    assert saves_taps((1, 2), (3, 3), (1, 1))
    assert not saves_taps((2, 2), (1, 1), (1, 1))
    assert not saves_taps((1, 1), (3, 3), (1, 1))
    assert not saves_taps((2, 2), (3, 3), (4, 4))
