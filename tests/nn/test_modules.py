"""The modules against torch's: constructor, state, sizes, and everything that is done to modules."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from upscore import nn
from upscore.errors import ArgumentError

OURS: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
TORCHS: dict[int, Any] = {
    1: torch.nn.ConvTranspose1d,
    2: torch.nn.ConvTranspose2d,
    3: torch.nn.ConvTranspose3d,
}
CASES: list[tuple[int, dict[str, Any]]] = [
    (1, {"kernel_size": 5, "stride": 3, "padding": 1, "output_padding": 2, "groups": 2}),
    (2, {"kernel_size": (3, 4), "stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "bias": False}),
    (2, {"kernel_size": 3, "stride": (1, 2), "dilation": (2, 1), "groups": 2, "dtype": torch.float64}),
    (3, {"kernel_size": (2, 1, 3), "stride": (2, 1, 2), "padding": (0, 0, 1)}),
]


def pair(rank: int, terms: dict[str, Any]) -> tuple[Any, Any]:
    """Ours and torch's layer from 4 to 6 channels with the same weights."""
    ours, theirs = OURS[rank](4, 6, **terms), TORCHS[rank](4, 6, **terms)
    assert theirs.load_state_dict(ours.state_dict()) is not None
    return ours, theirs


def inputs(rank: int, layer: Any, batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, *(5, 3, 4)[:rank], dtype=layer.weight.dtype)


def assert_same(y: Tensor, exact: Tensor) -> None:
    assert y.shape == exact.shape
    assert (y.double() - exact.double()).norm() <= 1e-6 * exact.double().norm()


@pytest.mark.parametrize(("rank", "terms"), CASES)
def test_same_as_torchs(rank: int, terms: dict[str, Any]) -> None:
    ours, theirs = pair(rank, terms)
    x = inputs(rank, ours)
    assert isinstance(ours, TORCHS[rank])
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours(x), theirs(x))
    with torch.no_grad():
        assert_same(ours(x), theirs(x))
        assert_same(ours(x[0]), theirs(x[0]))


@pytest.mark.parametrize(("rank", "terms"), CASES)
def test_starts_as_torchs(rank: int, terms: dict[str, Any]) -> None:
    torch.manual_seed(3)
    ours = OURS[rank](4, 6, **terms)
    torch.manual_seed(3)
    theirs = TORCHS[rank](4, 6, **terms)
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("wrong", [{"groups": 3}, {"groups": 0}, {"padding_mode": "reflect"}])
def test_refuses_what_torchs_constructor_refuses(wrong: dict[str, Any]) -> None:
    for layer in (torch.nn.ConvTranspose2d, nn.ConvTranspose2d):
        with pytest.raises(ValueError, match=next(iter(wrong)).partition("_")[0]):
            layer(4, 6, 3, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"padding": "full"}, "padding: expected 'same', 'valid', integers or pairs, got 'full'"),
        ({"padding": ((0, 1),)}, "padding: expected one integer, 2 integers, or 2"),
        ({"padding": ((0, -1), (0, 0))}, "padding: expected an integer of at least 0, got -1"),
        ({"padding": "same", "output_padding": 1, "stride": 2}, "output_padding: expected 0 with padding='same'"),
    ],
)
def test_refuses_bad_padding_at_once(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        nn.ConvTranspose2d(4, 6, 3, **wrong)


# --- padding beyond torch, and sizes ---


def test_same_multiplies_the_size() -> None:
    layer = nn.ConvTranspose3d(2, 3, (3, 4, 1), stride=(2, 3, 2), padding="same")
    assert layer(torch.zeros(1, 2, 3, 4, 5)).shape == (1, 3, 6, 12, 10)
    assert "padding=same" in repr(layer)


def test_pairs_cut_each_side() -> None:
    layer = nn.ConvTranspose1d(2, 3, 4, stride=2, padding=((2, 1),))
    x = torch.randn(1, 2, 5)
    full = torch.nn.functional.conv_transpose1d(x, layer.weight, layer.bias, 2)
    assert_same(layer(x), full[..., 2:-1])


def test_output_size_is_torchs() -> None:
    ours, theirs = pair(2, {"kernel_size": 3, "stride": (2, 3), "padding": 1, "dilation": (1, 2)})
    x = inputs(2, ours)
    smallest = theirs(x).shape[2:]
    for size in [(smallest[0] + 1, smallest[1] + 2), (2, 6, smallest[0], smallest[1] + 1), list(smallest)]:
        assert_same(ours(x, output_size=size), theirs(x, output_size=size))
    assert_same(ours(x[0], output_size=(6, *smallest)), theirs(x[0], output_size=(6, *smallest)))
    for wrong in [(smallest[0] + 2, smallest[1]), (smallest[0] - 1, smallest[1]), (smallest[0],)]:
        with pytest.raises(ValueError, match="output"):
            theirs(x, output_size=wrong)
        with pytest.raises(ValueError, match="output_size: expected"):
            ours(x, output_size=wrong)


@pytest.mark.parametrize(
    ("padding", "smallest"),  # of an input of (4, 3)
    [("same", (7, 7)), ("valid", (11, 9)), (((1, 2), (0, 0)), (8, 9))],
)
def test_output_size_leads_back_to_the_input(padding: Any, smallest: tuple[int, int]) -> None:
    layer = nn.ConvTranspose2d(1, 1, (5, 3), stride=(2, 3), padding=padding)
    x = torch.zeros(1, 1, 4, 3)
    largest = (smallest[0] + 1, smallest[1] + 2)
    for size in (smallest, largest):
        assert layer(x, output_size=size).shape == (1, 1, *size)
    for wrong in ((smallest[0] - 1, smallest[1]), (smallest[0], largest[1] + 1)):
        with pytest.raises(ArgumentError) as caught:
            layer(x, output_size=wrong)
        assert f"output_size: expected sizes from {smallest} to {largest} for an input of (4, 3)" in str(caught.value)


# --- what is done to modules ---


def test_pickle_and_deepcopy_carry_no_packed_weights() -> None:
    layer = nn.ConvTranspose2d(4, 6, (3, 4), stride=2, padding=((0, 1), (1, 0)))
    x = torch.randn(1, 4, 5, 3)
    fresh = len(pickle.dumps(layer))
    with torch.no_grad():
        exact = layer(x)
        assert len(pickle.dumps(layer)) == fresh
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(copied(x), exact)
            copied.weight.zero_()
            assert torch.equal(layer(x), exact)
            assert torch.equal(copied(x), copied.bias.view(1, 6, 1, 1).expand_as(exact))


def test_save_and_load_whole_and_by_state() -> None:
    layer = nn.ConvTranspose1d(4, 6, 3, padding="same")
    x = torch.randn(1, 4, 5)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), layer(x))
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = nn.ConvTranspose1d(4, 6, 3, padding="same")
    with torch.no_grad():
        assert not torch.equal(other(x), layer(x))
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(x), layer(x))


def test_to_other_dtypes_and_devices() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2)
    x = torch.randn(1, 4, 5, 3)
    with torch.no_grad():
        exact = layer(x)
        assert_same(layer.double()(x.double()), exact)
        assert layer.half()(x.half()).dtype == torch.float16
        assert_same(layer.float()(x), layer.double()(x.double()))
        assert layer.to("meta")(x.double().to("meta")).shape == exact.shape


def test_parametrizations() -> None:
    layer, plain = pair(1, {"kernel_size": 4, "stride": 2})
    x = inputs(1, layer)
    for m in (layer, plain):
        torch.manual_seed(0)
        torch.nn.utils.parametrizations.weight_norm(m)
        torch.nn.utils.parametrizations.spectral_norm(m, dim=1)
        m.eval()
    with torch.no_grad():
        assert_same(layer(x), plain(x))
        layer.parametrizations.weight.original0.mul_(2)
        plain.parametrizations.weight.original0.mul_(2)
        assert_same(layer(x), plain(x))


def test_trains_as_torchs() -> None:
    ours, theirs = pair(2, {"kernel_size": 3, "stride": 2, "dtype": torch.float64})
    optimizers = [torch.optim.Adam(m.parameters(), 0.1) for m in (ours, theirs)]
    for _ in range(4):
        x = inputs(2, ours)
        for m, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                m(x)  # packed in between
    torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="hardware: needs CUDA")
def test_cuda_is_torchs() -> None:
    for padding in (1, "same", ((0, 1), (2, 0))):
        layer = nn.ConvTranspose2d(4, 6, (3, 4), stride=(2, 3), padding=padding, groups=2).double()  # type: ignore[arg-type]
        x = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
        exact = layer(x)
        (grad,) = torch.autograd.grad(exact.square().sum(), x)
        y = layer.cuda()(x.cuda())
        torch.testing.assert_close(y.cpu(), exact)
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], grad)
