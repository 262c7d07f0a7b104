"""Packed weights: used again, and never when they are stale."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from upscore import cpu, nn
from upscore.geometry import Geometry
from upscore.nn import functional, packing


@pytest.fixture(autouse=True)
def _nothing_kept() -> Any:
    nn.forget()
    yield
    nn.forget()


def packed_count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows whenever weights are packed."""
    made: list[int] = []
    original = packing.Packed

    def counting(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(packing, "Packed", counting)
    return made


def exact(layer: Any, x: Tensor) -> Tensor:
    return F.conv_transpose2d(x, layer.weight, layer.bias, layer.stride)


def test_packed_once_for_inference_and_each_time_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    made = packed_count(monkeypatch)
    layer = nn.ConvTranspose2d(2, 3, (3, 2), stride=2)
    with torch.no_grad():
        for size in (3, 3, 5):
            layer(torch.randn(1, 2, size, 4))
    assert len(made) == 1
    layer(torch.randn(1, 2, 3, 4))
    layer(torch.randn(1, 2, 3, 4))
    assert len(made) == 3


CHANGES = {
    "in place": lambda w: w.mul_(2),
    "one element": lambda w: w[0, 0, 0, 0].fill_(7),
    "through data": lambda w: w.data.neg_(),
    "through NumPy": lambda w: w.detach().numpy().fill(3),
    "other memory": lambda w: setattr(w, "data", torch.randn_like(w)),
    "optimizer": lambda w: _step(w),
    "foreach": lambda w: torch._foreach_add_([w], 1.0),
    "copy": lambda w: w.copy_(torch.randn_like(w)),
}


def _step(w: Tensor) -> None:
    w.grad = torch.ones_like(w)
    torch.optim.AdamW([w], 0.1, fused=True).step()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("channels", [(2, 3), (64, 40)])  # sampled whole, and in part
@pytest.mark.parametrize("last", [False, True])
def test_changes_are_noticed(change: str, channels: tuple[int, int], last: bool) -> None:
    layer = nn.ConvTranspose2d(*channels, (3, 2), stride=2)
    if last:
        layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(1, channels[0], 3, 4)
    with torch.no_grad():
        before = layer(x)
        CHANGES[change](layer.weight)
        after = layer(x)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, exact(layer, x))


def test_changes_of_the_bias_are_noticed() -> None:
    layer = nn.ConvTranspose2d(2, 3, 2)
    x = torch.zeros(1, 2, 3, 4)
    with torch.no_grad():
        for bias in (torch.ones(3), torch.arange(3.0), None, torch.ones(3)):
            layer.bias = None if bias is None else torch.nn.Parameter(bias)
            torch.testing.assert_close(layer(x), exact(layer, x))
        layer.bias.data.mul_(5)  # type: ignore[union-attr]
        torch.testing.assert_close(layer(x), exact(layer, x))


def test_a_weight_at_the_same_address_is_another_weight() -> None:
    x = torch.ones(1, 1, 1)
    with torch.no_grad():
        for value in range(50):
            w = torch.full((1, 1, 3), float(value))
            assert functional.conv_transpose1d(x, w)[0, 0, 0] == value
            del w


def test_freed_with_the_weights() -> None:
    layer = nn.ConvTranspose2d(2, 3, 2)
    with torch.no_grad():
        layer(torch.zeros(1, 2, 3, 4))
    (entry,) = packing._entries.values()
    packed = weakref.ref(next(iter(entry.packed.values()))[2])
    del entry, layer
    assert packing._entries == {}
    assert packed() is None


def test_shared_weights_at_two_strides_are_packed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made = packed_count(monkeypatch)
    w, x = torch.randn(2, 3, 4), torch.randn(1, 2, 5)
    with torch.no_grad():
        for _ in range(3):
            for stride in (1, 2):
                torch.testing.assert_close(
                    functional.conv_transpose1d(x, w, stride=stride), F.conv_transpose1d(x, w, stride=stride)
                )
    assert len(made) == 2


def test_packed_for_the_active_instruction_set() -> None:
    w = torch.randn(2, 3, 4)
    active = cpu.active()
    try:
        for isa in cpu.available():
            cpu.force(isa)
            x = torch.randn(1, 2, 5)
            functional.conv_transpose1d(x, w, stride=2)
            packed = packing.pack(w, None, Geometry(4, 2), 1, keep=True, x=x, size=(12,))
            assert packed.why(1, Geometry(4, 2), (5,), (12,)).startswith(isa)
    finally:
        cpu.force(active)


def test_forget_drops_one_or_all() -> None:
    weights = [torch.randn(1, 1, 2) for _ in range(3)]
    for w in weights:
        functional.conv_transpose1d(torch.ones(1, 1, 2), w)
    nn.forget(weights[0])
    assert set(packing._entries) == {id(w) for w in weights[1:]}
    nn.forget(weights[0])
    nn.forget()
    assert packing._entries == {}


def test_threads_that_share_a_layer() -> None:
    layer = nn.ConvTranspose2d(8, 8, 4, stride=2)
    x = torch.randn(1, 8, 6, 5)
    with torch.no_grad():
        wanted = exact(layer, x)
    failures: list[str] = []

    def work() -> None:
        with torch.no_grad():
            for turn in range(50):
                if turn % 10 == 0:
                    nn.forget(layer.weight)
                if not torch.allclose(layer(x), wanted, atol=1e-5):
                    failures.append("wrong")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_weights_in_half_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        layer = nn.ConvTranspose2d(2, 3, 2, dtype=dtype)
        x = torch.ones(1, 2, 3, 4, dtype=dtype)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(layer(x), exact(layer.float(), x.float()).to(dtype))
                layer.to(dtype).weight.data.mul_(2)


def test_weights_that_are_not_in_one_piece() -> None:
    whole = torch.randn(4, 3, 5)
    w, x = whole[::2, :, 1:4], torch.randn(1, 2, 5)
    for _ in range(2):
        torch.testing.assert_close(functional.conv_transpose1d(x, w), F.conv_transpose1d(x, w))
        whole.mul_(2)


# --- calls that come again ---


class Counting(TorchDispatchMode):
    """Sees every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.ConvTranspose2d, Tensor]:
    """A layer and an input that it has seen, with which nothing is decided any more."""
    layer, x = nn.ConvTranspose2d(2, 3, (3, 2), stride=2), torch.randn(2, 2, 4, 5)
    with torch.no_grad():
        layer(x)
        with monkeypatch.context() as patch:
            patch.setattr(packing, "pack", None)
            patch.setattr(functional, "_settled", None)
            torch.testing.assert_close(layer(x), exact(layer, x))
    return layer, x


def test_known_to_whoever_asks_for_the_same(known: tuple[nn.ConvTranspose2d, Tensor]) -> None:
    layer, x = known
    with torch.no_grad():
        for other in (
            x[:1],
            x.to(memory_format=torch.channels_last),
            x.transpose(2, 3).contiguous().transpose(2, 3),
            x.repeat_interleave(2, dim=3)[..., ::2],
            torch._neg_view(x),
            x[0],
        ):
            for _ in range(2):
                torch.testing.assert_close(layer(other), exact(layer, other))
        with pytest.raises(RuntimeError, match="conv_transpose1d"):
            functional.conv_transpose1d(x, layer.weight, layer.bias, 2)
        y = functional.conv_transpose2d(x, layer.weight, layer.bias, [2, 2], (0, 0))
        torch.testing.assert_close(y, exact(layer, x))
        torch.testing.assert_close(
            functional.conv_transpose2d(x, layer.weight, None, 2), F.conv_transpose2d(x, layer.weight, None, 2)
        )


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")  # which jvp itself still calls
def test_known_calls_are_still_recorded_and_still_seen(known: tuple[nn.ConvTranspose2d, Tensor]) -> None:
    layer, x = known
    assert layer(x).requires_grad
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
        with Counting() as mode:
            layer(x)
        assert any("conv_transpose" in name for name in mode.seen)
        _, tangent = torch.func.jvp(lambda t: layer(t), (x,), (x,))
        torch.testing.assert_close(tangent, F.conv_transpose2d(x, layer.weight, None, 2))
        torch.testing.assert_close(torch.func.vmap(lambda t: layer(t))(x), exact(layer, x))


def test_known_calls_notice_changes(known: tuple[nn.ConvTranspose2d, Tensor]) -> None:
    layer, x = known
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            assert parameter is not None
            for change in CHANGES.values():
                if parameter.dim() == 4 or change is not CHANGES["one element"]:
                    change(parameter)
                    torch.testing.assert_close(layer(x), exact(layer, x))


def test_the_calls_that_are_known_are_few() -> None:
    w = torch.randn(1, 1, 2)
    for length in range(1, 200):
        functional.conv_transpose1d(torch.ones(1, 1, length), w)
    (entry,) = packing._entries.values()
    assert 0 < len(entry.calls) <= packing._CALLS
