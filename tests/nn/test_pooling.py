"""Unpooling against torch's, and what torch's does not catch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from upscore import nn

OURS: dict[int, Any] = {1: nn.MaxUnpool1d, 2: nn.MaxUnpool2d, 3: nn.MaxUnpool3d}
CASES: list[tuple[int, Any, Any, Any, tuple[int, ...]]] = [
    (1, 3, 2, 1, (11,)),
    (2, 2, None, 0, (5, 6)),
    (2, (3, 2), (2, 3), (1, 0), (9, 8)),
    (3, (2, 1, 3), (2, 2, 3), (1, 0, 1), (6, 5, 7)),
]


@pytest.mark.parametrize(("rank", "kernel", "stride", "padding", "size"), CASES)
@pytest.mark.parametrize("batched", [True, False])
def test_same_as_torchs(
    rank: int, kernel: Any, stride: Any, padding: Any, size: tuple[int, ...], batched: bool
) -> None:
    pool = getattr(torch.nn, f"MaxPool{rank}d")(kernel, stride, padding, return_indices=True)
    theirs = getattr(torch.nn, f"MaxUnpool{rank}d")(kernel, stride, padding)
    ours = OURS[rank](kernel, stride, padding)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    x = torch.randn(2, 3, *size)[slice(None) if batched else 0]
    y, switches = pool(x)
    y.requires_grad_()
    for wanted in (size, (1, 1, *size), None):
        try:
            exact = theirs(y, switches, wanted)
        except RuntimeError:  # the default size does not hold all indices
            with pytest.raises(RuntimeError, match="indices: expected positions in the output, from 0 to"):
                ours(y, switches, wanted)
            continue
        result = ours(y, switches, wanted)
        assert torch.equal(result, exact)
        assert torch.equal(*(torch.autograd.grad(r.square().sum(), y)[0] for r in (result, exact)))


Y, SWITCHES = torch.nn.functional.max_pool2d(torch.randn(2, 3, 4, 6), 2, return_indices=True)


@pytest.mark.parametrize(
    ("y", "switches", "size", "kind", "message"),
    [
        (Y, SWITCHES + 24, None, RuntimeError, "indices: expected positions in the output, from 0 to 23, got 4"),
        (Y, SWITCHES - 24, None, RuntimeError, "indices: expected positions in the output, from 0 to 23, got -"),
        (Y, SWITCHES.int(), None, RuntimeError, "indices: expected int64 numbers.*got torch.int32"),
        (Y, SWITCHES[:, :, 1:], None, RuntimeError, r"indices: expected the shape of input, \(2, 3, 2, 3\), got"),
        (Y[0, 0], SWITCHES[0, 0], None, RuntimeError, r"input: expected 4 dimensions .*got shape \(2, 3\)"),
        (Y, SWITCHES, (4, 8), ValueError, r"output_size: expected sizes less than the stride \(2, 2\) away from"),
        (Y, SWITCHES, (4,), ValueError, "output_size: expected one integer, or 2 of them"),
    ],
)
def test_refusals(y: Any, switches: Any, size: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        nn.MaxUnpool2d(2)(y, switches, size)


def test_the_dtype_error_is_a_type_error_too() -> None:
    with pytest.raises(TypeError):
        nn.MaxUnpool2d(2)(Y, SWITCHES.int())


def test_empty_batch_and_meta() -> None:
    unpool = nn.MaxUnpool2d(2)
    assert unpool(Y[:0], SWITCHES[:0]).shape == (0, 3, 4, 6)
    assert unpool(Y.to("meta"), SWITCHES.to("meta")).shape == (2, 3, 4, 6)


def test_compiles_whole() -> None:
    unpool = nn.MaxUnpool2d(2)
    compiled = torch.compile(unpool, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(Y, SWITCHES), unpool(Y, SWITCHES))
