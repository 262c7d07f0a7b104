"""Models whose layers are swapped: same outputs, same state, nothing lost."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

import upscore
from upscore import nn


class HiFiGAN(torch.nn.Module):
    """The shape of a HiFi-GAN generator: weight-normed 1-D layers and residual blocks."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.pre = norm(torch.nn.Conv1d(8, 16, 7, padding=3))
        self.ups = torch.nn.ModuleList(
            norm(torch.nn.ConvTranspose1d(16 // 2**i, 8 // 2**i, k, s, (k - s) // 2))
            for i, (k, s) in enumerate([(16, 8), (4, 2)])
        )
        self.res = torch.nn.ModuleList(norm(torch.nn.Conv1d(c, c, 3, padding=1)) for c in (8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for up, res in zip(self.ups, self.res, strict=True):
            x = up(torch.nn.functional.leaky_relu(x, 0.1))
            x = x + res(x)
        return torch.tanh(x)


class Shared(torch.nn.Module):
    """One layer used twice and under two names, and a second layer with the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ConvTranspose2d(3, 3, (4, 3), stride=(2, 1), padding=1)
        self.same = self.up
        self.tied = torch.nn.ConvTranspose2d(3, 3, (4, 3), stride=(1, 2))
        self.tied.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tied(self.same(self.up(x)))
        return y


def nested() -> torch.nn.Module:
    inner = torch.nn.Sequential(
        torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
    )
    return torch.nn.Sequential(
        torch.nn.ConvTranspose2d(4, 6, (3, 4), (2, 3), output_padding=1),
        torch.nn.ModuleDict({"a": inner})["a"],
        torch.nn.ConvTranspose2d(4, 1, 3, dilation=2),
    )


def volumes() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.ConvTranspose3d(2, 4, (2, 3, 4), (2, 1, 2), (0, 1, 1)), torch.nn.Sigmoid())


MODELS: dict[str, tuple[Any, tuple[int, ...], int]] = {  # model, input, transposed convolutions
    "plain": (lambda: torch.nn.ConvTranspose1d(3, 5, 4, 2), (2, 3, 7), 1),
    "nested": (nested, (2, 4, 3, 5), 3),
    "shared": (Shared, (1, 3, 4, 5), 2),
    "volumes": (volumes, (1, 2, 3, 4, 2), 1),
    "hifi-gan": (lambda: HiFiGAN(torch.nn.utils.parametrizations.weight_norm), (1, 8, 10), 2),
    "hifi-gan, old weight norm": (lambda: HiFiGAN(old_weight_norm), (1, 8, 10), 2),
    "hifi-gan, spectral norm": (lambda: HiFiGAN(torch.nn.utils.parametrizations.spectral_norm), (1, 8, 10), 2),
}


def old_weight_norm(module: Any) -> Any:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(module)


def ours(model: torch.nn.Module) -> list[torch.nn.Module]:
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return [m for m in model.modules() if isinstance(m, kinds)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_same_outputs_state_and_gradients(name: str, training: bool) -> None:
    build, shape, count = MODELS[name]
    torch.manual_seed(0)
    model = build().train(training)
    torch.manual_seed(0)
    plain = build().train(training)
    x = torch.randn(shape)
    parameters = dict(model.named_parameters())
    keys = list(model.state_dict())
    exact = plain(x)
    assert upscore.accelerate(model) is model
    assert len(ours(model)) == count
    assert [m.training for m in model.modules()] == [training] * len(list(model.modules()))
    assert list(model.state_dict()) == keys
    assert all(p is parameters[n] for n, p in model.named_parameters())
    y = model(x)
    torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    exact.square().sum().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["nested", "shared", "volumes", "hifi-gan, old weight norm"])
def test_pickled_and_back(name: str) -> None:
    build, shape, count = MODELS[name]
    model = upscore.accelerate(build()).eval()
    back = pickle.loads(pickle.dumps(model))
    assert len(ours(back)) == count
    x = torch.randn(shape)
    assert torch.equal(back(x), model(x))


def test_sharing_stays() -> None:
    model = upscore.accelerate(Shared())
    assert model.up is model.same
    assert model.up.weight is model.tied.weight


def test_twice_is_once() -> None:
    model = upscore.accelerate(nested())
    kinds = [type(m) for m in model.modules()]
    assert [type(m) for m in upscore.accelerate(model).modules()] == kinds


def test_hooks_stay() -> None:
    layer = torch.nn.ConvTranspose1d(2, 2, 3)
    calls: list[str] = []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    upscore.accelerate(torch.nn.Sequential(layer))(torch.randn(1, 2, 4, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "backward"]


def test_parametrizations_can_be_removed_and_added_after() -> None:
    layer: Any = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose2d(2, 3, (2, 3), 2))
    x = torch.randn(1, 2, 3, 4)
    exact = layer(x)
    upscore.accelerate(layer)
    assert isinstance(layer, nn.ConvTranspose2d)
    assert parametrize.is_parametrized(layer, "weight")
    torch.testing.assert_close(layer(x), exact)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.ConvTranspose2d
    torch.testing.assert_close(layer(x), exact)
    torch.testing.assert_close(torch.nn.utils.parametrizations.weight_norm(layer)(x), exact)


class Doubled(torch.nn.ConvTranspose2d):
    """A user's layer, with a forward that calls torch's and a method of its own."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        return 2 * super().forward(input, output_size)

    def answer(self) -> int:
        return 42


def test_subclasses_are_taken_along() -> None:
    layer: Any = Doubled(2, 3, (2, 3), 2)
    layer.note = "kept"
    x = torch.randn(1, 2, 3, 4)
    exact = layer(x)
    upscore.accelerate(layer)
    assert isinstance(layer, Doubled)
    assert isinstance(layer, nn.ConvTranspose2d)
    for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(each(x), exact)
        assert (each.answer(), each.note, type(each)) == (42, "kept", type(layer))
    torch.testing.assert_close(layer(x, output_size=(7, 9))[..., :6, :], exact)


def test_left_alone() -> None:
    lazy = torch.nn.LazyConvTranspose2d(3, 2)
    replaced: Any = torch.nn.ConvTranspose1d(2, 2, 3)
    replaced.forward = lambda x: x
    other = torch.nn.Conv2d(2, 2, 3)
    for module in (lazy, replaced, other):
        kind = type(module)
        assert type(upscore.accelerate(module)) is kind
    lazy(torch.randn(1, 2, 3, 4))
    assert type(upscore.accelerate(lazy)) is nn.ConvTranspose2d


def test_refuses_what_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got dict"):
        upscore.accelerate({"a": 1})  # type: ignore[type-var]


def test_found_on_the_package() -> None:
    assert upscore.accelerate is nn.accelerate
    with pytest.raises(AttributeError, match="no attribute 'decelerate'"):
        upscore.decelerate  # noqa: B018
