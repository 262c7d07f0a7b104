"""Pairs that accelerate finds and fuses, those it must leave, and what holds afterwards."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import upscore
from upscore.nn import fusion


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A list that gets the kernel of every fused layer that runs."""
    calls: list[tuple[int, ...]] = []
    original = fusion.upsampled_conv

    def counting(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        calls.append(tuple(w.shape[2:]))
        return original(x, w, *rest)

    monkeypatch.setattr(fusion, "upsampled_conv", counting)
    return calls


class Functional(torch.nn.Module):
    """Upsamples in its forward, as decoders of diffusion models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 6, (3, 5), padding=(1, 2))
        self.scale = 1.0

    def forward(self, x: Tensor, add: float = 0.0) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y * self.scale + add


class Decoder(torch.nn.Module):
    """Both forms, nested, with a transposed convolution between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Functional()
        self.up = torch.nn.ConvTranspose2d(6, 4, 2, 2)
        self.last = torch.nn.Sequential(
            torch.nn.ReLU(),
            torch.nn.Upsample(scale_factor=(2, 3)),
            torch.nn.Conv2d(4, 3, (2, 3), padding="same", groups=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.up(self.first(x)))
        return y


def pair(*, up: Any = None, conv: Any = None) -> torch.nn.Sequential:
    up = torch.nn.Upsample(scale_factor=2) if up is None else up
    return torch.nn.Sequential(up, torch.nn.Conv2d(4, 6, 3, padding=1) if conv is None else conv)


X = torch.randn(2, 4, 3, 5)

# Even kernels and padding="same": torch pads a copy, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths:UserWarning")


def assert_accelerated(model: torch.nn.Module, x: Tensor, calls: list[Any], count: int) -> None:
    """Same outputs in every mode, fused ``count`` times, and only without gradients."""
    model.eval()
    exact, keys = model(x).detach(), list(model.state_dict())
    parameters = dict(model.named_parameters())
    upscore.accelerate(model)
    assert list(model.state_dict()) == keys
    assert all(p is parameters[name] for name, p in model.named_parameters())
    torch.testing.assert_close(model(x).detach(), exact, rtol=1e-5, atol=1e-5)
    assert calls == []
    for quiet in (torch.no_grad, torch.inference_mode):
        calls.clear()
        with quiet():
            torch.testing.assert_close(model(x), exact, rtol=1e-5, atol=1e-5)
        assert len(calls) == count


def test_both_forms_in_a_model(fused_calls: list[Any]) -> None:
    assert_accelerated(Decoder(), X, fused_calls, 2)
    assert fused_calls == [(3, 5), (2, 3)]


PAIRS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1-D": (
        lambda: torch.nn.Sequential(torch.nn.Upsample(scale_factor=4), torch.nn.Conv1d(4, 2, 5, padding=2)),
        (2, 4, 7),
    ),
    "3-D": (
        lambda: torch.nn.Sequential(
            torch.nn.Upsample(scale_factor=(1, 2, 3)), torch.nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 0), groups=2)
        ),
        (1, 4, 2, 3, 4),
    ),
    "nearest-exact": (lambda: pair(up=torch.nn.Upsample(scale_factor=3, mode="nearest-exact")), (2, 4, 3, 5)),
    "UpsamplingNearest2d": (lambda: pair(up=torch.nn.UpsamplingNearest2d(scale_factor=2)), (2, 4, 3, 5)),
    "dilation": (lambda: pair(conv=torch.nn.Conv2d(4, 6, 5, padding=3, dilation=(1, 2))), (2, 4, 3, 5)),
    "wide padding": (lambda: pair(conv=torch.nn.Conv2d(4, 6, 3, padding=(4, 3))), (2, 4, 3, 5)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_that_are_fused(name: str, fused_calls: list[Any]) -> None:
    build, shape = PAIRS[name]
    assert_accelerated(build(), torch.randn(shape), fused_calls, 1)


class Twice(torch.nn.Module):
    """The upsampled tensor has a second reader."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(x, scale_factor=2)
        return y + self.conv(y)


class Branching(torch.nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            x = x + 1
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2))
        return y


def hooked() -> torch.nn.Module:
    model = pair()
    model[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


UNFUSED: dict[str, Any] = {
    "two readers": Twice,
    "control flow": Branching,
    "hooks": hooked,
    "bilinear": lambda: pair(up=torch.nn.Upsample(scale_factor=2, mode="bilinear")),
    "fraction": lambda: pair(up=torch.nn.Upsample(scale_factor=1.5)),
    "size": lambda: pair(up=torch.nn.Upsample(size=(7, 9))),
    "too far": lambda: pair(up=torch.nn.Upsample(scale_factor=9)),
    "reflection": lambda: pair(conv=torch.nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
    "stride": lambda: pair(conv=torch.nn.Conv2d(4, 6, 3, stride=2)),
    "one tap": lambda: pair(conv=torch.nn.Conv2d(4, 6, 1)),
    "parametrized": lambda: pair(conv=torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(4, 6, 3))),
    "normalised between": lambda: torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 6, 3)
    ),
}


@pytest.mark.parametrize("name", UNFUSED)
def test_pairs_that_are_left(name: str, fused_calls: list[Any]) -> None:
    assert_accelerated(UNFUSED[name](), X, fused_calls, 0)


def test_says_why_a_module_is_left(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "upscore.nn.fusion"):
        upscore.accelerate(Branching())
    assert (
        "Branching is not fused: symbolically traced variables cannot be used as inputs to control flow" in caplog.text
    )


def test_fusing_can_be_left_out(fused_calls: list[Any]) -> None:
    model = upscore.accelerate(pair(), fuse=False)
    assert "forward" not in vars(model)


def test_weights_may_change(fused_calls: list[Any]) -> None:
    model, plain = pair(), pair()
    upscore.accelerate(model)
    with torch.no_grad():
        for _ in range(3):
            plain.load_state_dict(model.state_dict())
            torch.testing.assert_close(model(X), plain(X), rtol=1e-5, atol=1e-5)
            model[1].weight.mul_(1.5)
            model[1].bias = torch.nn.Parameter(torch.randn(6))
    assert len(fused_calls) == 3


def test_what_was_traced_may_change(fused_calls: list[Any]) -> None:
    model: Any = upscore.accelerate(Functional())
    with torch.no_grad():
        y = model(X)
        model.scale = 3.0
        torch.testing.assert_close(model(X), 3 * y)
        model.scale = 1.0
        torch.testing.assert_close(model(X, add=2.0), y + 2)
        assert len(fused_calls) == 2
        model.conv.register_forward_hook(lambda module, args, output: output + 1)
        torch.testing.assert_close(model(X), y + 1)
        model.conv = torch.nn.Conv2d(4, 6, 1)
        assert model(X).shape == (2, 6, 6, 10)
    assert len(fused_calls) == 2


def test_trains_as_before() -> None:
    model, plain = pair(), pair()
    plain.load_state_dict(model.state_dict())
    upscore.accelerate(model).train()
    for m in (model, plain):
        m(X).square().sum().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_copies_stay_fused_and_apart(fused_calls: list[Any]) -> None:
    model = upscore.accelerate(Decoder()).eval()
    with torch.no_grad():
        y = model(X)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            fused_calls.clear()
            torch.testing.assert_close(copied(X), y)
            assert len(fused_calls) == 2
            for p in copied.parameters():
                p.zero_()
            assert not torch.equal(copied(X), y)
            torch.testing.assert_close(model(X), y)


def test_twice_is_once(fused_calls: list[Any]) -> None:
    model = upscore.accelerate(upscore.accelerate(pair()))
    with torch.no_grad():
        model(X)
    assert len(fused_calls) == 1


def test_slices_of_a_sequential_are_plain() -> None:
    model = upscore.accelerate(pair())
    with torch.no_grad():
        assert torch.equal(model[:1](X), F.interpolate(X, scale_factor=2))


def test_compiled_and_traced_afterwards() -> None:
    model = upscore.accelerate(Decoder()).eval()
    with torch.no_grad():
        exact = model(X)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(X)
        torch.testing.assert_close(compiled, exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(X), exact, rtol=1e-5, atol=1e-5)
        exported = torch.export.export(model, (X,)).module()
        torch.testing.assert_close(exported(X), exact, rtol=1e-5, atol=1e-5)
