"""The operators inside torch: its own samples, opcheck, compilers, export, transforms, autocast, fx."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

from upscore import nn
from upscore.nn import functional, native, operators, packing

# Importing torch's compiler backend, inductor, defines TorchScript classes.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")

RANKS = (1, 2, 3)
GEOMETRY = [2, 3], [2, 1], [1, -1], [2, 0], 2


def operands(dtype: torch.dtype = torch.float64, *, last: bool = False, grad: bool = True) -> tuple[Tensor, ...]:
    """x (2, 4, 3, 4), w (4, 3, 3, 2), bias (6,) and y, as large as the output of GEOMETRY."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 3, 4), (4, 3, 3, 2), (6,), (2, 6, 6, 12)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    if last:
        tensors = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    return tuple(t.requires_grad_(grad) for t in tensors)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("dtype", "allowed"),  # in half precision the rounding of the result
    [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.float16, 2**-11), (torch.bfloat16, 2**-8)],
)
def test_samples_of_torchs_op_db_pass(rank: int, dtype: torch.dtype, allowed: float) -> None:
    (info,) = [op for op in op_db if op.name == f"nn.functional.conv_transpose{rank}d"]
    theirs = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    ours = getattr(functional, f"conv_transpose{rank}d")
    samples = list(info.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) >= 10
    for sample in samples:
        exact = theirs(
            *(t.double() if isinstance(t, Tensor) else t for t in (sample.input, *sample.args)),
            **{name: value.double() if isinstance(value, Tensor) else value for name, value in sample.kwargs.items()},
        )
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                y = ours(sample.input, *sample.args, **sample.kwargs)
            assert (y.dtype, y.shape, y.requires_grad) == (dtype, exact.shape, grad)
            assert (y.double() - exact).norm() <= allowed * exact.norm()


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last: bool) -> None:
    x, w, bias, y = operands(torch.float32, last=last)
    torch.library.opcheck(operators.conv_transpose, (x, w, bias, *GEOMETRY, True))
    torch.library.opcheck(operators.input_gradient, (y, w, *GEOMETRY))
    torch.library.opcheck(operators.weight_gradient, (x, y, [3, 2], *GEOMETRY))


def test_the_three_are_adjoint() -> None:
    x, w, _, y = operands(grad=False)
    transposed = operators.conv_transpose(x, w, None, *GEOMETRY, False)
    assert transposed.shape == y.shape
    product = (transposed * y).sum()
    torch.testing.assert_close((operators.input_gradient(y, w, *GEOMETRY) * x).sum(), product)
    torch.testing.assert_close((operators.weight_gradient(x, y, [3, 2], *GEOMETRY) * w).sum(), product)


def test_gradients_of_the_gradients() -> None:
    x, w, _, y = operands()
    check = torch.autograd.gradgradcheck
    assert check(lambda *a: operators.input_gradient(*a, *GEOMETRY), (y, w), fast_mode=True)
    assert check(lambda *a: operators.weight_gradient(*a, [3, 2], *GEOMETRY), (x, y), fast_mode=True)


ASKED = [("x",), ("w",), ("bias",), ("x", "w"), ("x", "bias"), ("w", "bias"), ("x", "w", "bias")]


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("dispatched", [False, True])
@pytest.mark.parametrize("asked", ASKED, ids=lambda names: "+".join(names))
def test_only_gradients_that_are_asked_for_are_computed(
    asked: tuple[str, ...], dispatched: bool, leaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "_WORTH", 0)
    computed: list[str] = []
    count_gradients(computed, monkeypatch)
    *tensors, _ = operands()
    leaves = dict(zip(("x", "w", "bias"), tensors, strict=True))
    x, w, bias = (t if leaf else t * 2 for t in tensors)
    if dispatched:
        y = operators.conv_transpose(x, w, bias, [2, 3], [2, 1], [1, 0], [1, 0], 2, False)
    else:
        y = functional.conv_transpose2d(x, w, bias, stride=(2, 3), padding=(1, 0), groups=2, dilation=(2, 1))
    g = torch.ones_like(y)
    gradients = torch.autograd.grad(y, [leaves[name] for name in asked], g, retain_graph=True)
    # An input that is a leaf is not asked about, if anything else is wanted.
    assert ("x" in computed, "w" in computed) == ("x" in asked or leaf, "w" in asked)
    computed.clear()
    y.backward(g)
    assert {"x", "w"} <= set(computed)
    for name, one in zip(asked, gradients, strict=True):
        torch.testing.assert_close(one, leaves[name].grad)


def count_gradients(computed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which gradients are computed, in the engine's single call or one by one."""

    def gradients(*arguments: Any) -> Any:
        computed.extend(name for name, of in zip(("x", "w", "bias"), arguments[-1], strict=True) if of)
        return all_of_them(*arguments)

    def counted(name: str, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Any) -> Tensor:
            computed.append(name)
            return compute(*arguments)

        return run

    all_of_them = native.gradients
    monkeypatch.setattr(native, "gradients", gradients)
    monkeypatch.setattr(native, "input_gradient", counted("x", native.input_gradient))
    monkeypatch.setattr(native, "weight_gradient", counted("w", native.weight_gradient))


@pytest.mark.parametrize("whose", ["input", "weight"])
def test_numbers_of_another_kind_put_into_a_tensor_before_its_backward_pass(whose: str) -> None:
    """Through ``.data``, which torch does not notice: another dtype is read as what it is, another shape refused."""
    layer = nn.ConvTranspose2d(4, 3, 3, 2)
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    tensors = [x, *layer.parameters()]
    changed = x if whose == "input" else layer.weight
    layer(x).sum().backward()
    expected = [t.grad for t in tensors]
    for dtype in (torch.float64, torch.bfloat16):
        for t in tensors:
            t.grad = None
        y = layer(x)
        before, changed.data = changed.data, changed.data.to(dtype)
        y.sum().backward(retain_graph=True)
        tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
        for t, theirs in zip(tensors, expected, strict=True):
            assert t.grad is not None
            assert theirs is not None
            difference = (t.grad.float() - theirs).abs().max()
            assert difference <= tolerance * theirs.abs().max()
        changed.data = before
    changed.data = changed.data[:, :1].contiguous()
    with pytest.raises(ValueError, match="channels"):
        y.sum().backward()


# --- compilers ---


class Decoder(torch.nn.Module):
    """Two layers, an output size that depends on the input, and a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=((0, 1), (1, 0)), groups=2)
        self.norm = torch.nn.BatchNorm2d(6)
        self.last = nn.ConvTranspose2d(6, 3, 4, stride=2, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.norm(self.up(x))))
        return y


def test_compile_whole_with_gradients() -> None:
    torch._dynamo.reset()
    model = Decoder().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ((2, 4, 3, 5), (1, 4, 6, 2)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), model(x))
    for parameter, grad in zip(
        model.parameters(), torch.autograd.grad(compiled(x).sum(), list(model.parameters())), strict=True
    ):
        (exact,) = torch.autograd.grad(model(x).sum(), [parameter])
        torch.testing.assert_close(grad, exact)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_inductor_with_channels_last() -> None:
    torch._dynamo.reset()
    model = Decoder().eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = torch.compile(model, fullgraph=True)(x)
        torch.testing.assert_close(y, model(x))
        assert y.stride() == model(x).stride()


def test_compiled_layers_find_packed_weights_and_notice_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    made: list[int] = []
    original = packing.Packed
    monkeypatch.setattr(packing, "Packed", lambda *args, **kw: made.append(1) or original(*args, **kw))
    layer = nn.ConvTranspose1d(2, 3, 4, stride=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, 5)
    with torch.no_grad():
        before = compiled(x).clone()
        compiled(x)
        assert len(made) == 1
        layer.weight.mul_(2)
        layer.bias.zero_()  # type: ignore[union-attr]
        torch.testing.assert_close(compiled(x), F.conv_transpose1d(x, layer.weight, stride=2))
        assert not torch.equal(before, compiled(x))
        assert len(made) == 2


def test_compiled_with_an_output_size() -> None:
    torch._dynamo.reset()
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    compiled = torch.compile(lambda x, like: layer(x, output_size=like.shape[2:]), fullgraph=True, backend="aot_eager")
    for size in ((5, 7), (6, 8), (10, 7)):
        like, x = torch.zeros(1, 1, *size), torch.randn(1, 2, (size[0] + 1) // 2, (size[1] + 1) // 2)
        torch.testing.assert_close(compiled(x, like), layer(x, output_size=size))
        assert compiled(x, like).shape == (1, 3, *size)


def test_a_graph_break_around_the_layer_changes_nothing() -> None:
    torch._dynamo.reset()
    layer = nn.ConvTranspose1d(2, 3, 4, stride=2).requires_grad_(False)

    def broken(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        y: Tensor = operators.conv_transpose(x + 1, layer.weight, None, [2], [1], [0], [0], 1, False)
        torch._dynamo.graph_break()
        return y * 2

    x = torch.randn(1, 2, 5)
    torch.testing.assert_close(
        torch.compile(broken, backend="eager")(x), 2 * F.conv_transpose1d(x + 1, layer.weight, stride=2)
    )


@pytest.mark.parametrize("strict", [False, True])
def test_export_for_any_batch(strict: bool) -> None:
    model = Decoder().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 4, 3, 5),), dynamic_shapes=({0: batch},), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("upscore.conv_transpose.default") == 2
    x = torch.randn(5, 4, 3, 5)
    torch.testing.assert_close(program.module()(x), model(x))


def test_fx_keeps_the_call_whole() -> None:
    layer = nn.ConvTranspose2d(2, 3, (3, 2), stride=2, padding="same")
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(layer, torch.nn.ReLU()))
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [functional.conv_transpose2d]
    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(graph(x), layer(x).relu())


def test_jit_trace_records_the_operator() -> None:
    layer = nn.ConvTranspose1d(2, 3, 4, stride=2)
    x = torch.randn(1, 2, 5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated as a whole
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the traced sizes are constants
        layer(x)  # a call that comes again is traced all the same
        traced = torch.jit.trace(layer, x)
    assert "upscore::conv_transpose" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(2 * x), layer(2 * x))


# --- modes and transforms ---


@pytest.mark.parametrize("records", [False, True])
def test_autocast_is_torchs(records: bool) -> None:
    ours = nn.ConvTranspose2d(16, 3, (3, 4), stride=2)
    theirs = torch.nn.ConvTranspose2d(16, 3, (3, 4), stride=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 16, 5, 4)
    grad = contextlib.nullcontext() if records else torch.no_grad()
    with torch.autocast("cpu", torch.bfloat16), grad:
        y, exact = ours(x), theirs(x)
        assert y.dtype == exact.dtype == torch.bfloat16
        torch.testing.assert_close(y, exact)
        assert ours.double()(x.double()).dtype == theirs.double()(x.double()).dtype == torch.float64
    if records:
        ours.float()
        with torch.autocast("cpu", torch.bfloat16):
            y = ours(x).float().sum()
        y.backward()
        assert ours.weight.grad is not None
        assert ours.weight.grad.dtype == torch.float32


def test_compiled_autocast() -> None:
    torch._dynamo.reset()
    layer = nn.ConvTranspose1d(2, 3, 4, stride=2)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = layer(x)
        return y

    x = torch.randn(1, 2, 5)
    y = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, run(x))


def test_transforms_are_torchs() -> None:
    x, w, bias, _ = operands(grad=False)
    terms: dict[str, Any] = {"stride": (2, 3), "padding": (1, 0), "groups": 2}
    ours = lambda *a: functional.conv_transpose2d(*a, **terms)  # noqa: E731
    theirs = lambda *a: F.conv_transpose2d(*a, **terms)  # noqa: E731
    stack = torch.stack([x, 2 * x])
    torch.testing.assert_close(
        torch.func.vmap(ours, (0, None, None))(stack, w, bias), torch.func.vmap(theirs, (0, None, None))(stack, w, bias)
    )
    for at in (0, 1):
        torch.testing.assert_close(
            torch.func.grad(lambda *a: ours(*a).pow(2).sum(), at)(x, w, bias),
            torch.func.grad(lambda *a: theirs(*a).pow(2).sum(), at)(x, w, bias),
        )
    tangents = tuple(torch.ones_like(t) for t in (x, w, bias))
    torch.testing.assert_close(
        torch.func.jvp(ours, (x, w, bias), tangents), torch.func.jvp(theirs, (x, w, bias), tangents)
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangents[0])
        tangent = torch.autograd.forward_ad.unpack_dual(ours(dual, w, bias)).tangent
        torch.testing.assert_close(tangent, theirs(tangents[0], w))


def test_modes_see_the_operator() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        nn.ConvTranspose1d(2, 3, 4, stride=2)(torch.randn(1, 2, 5))
    assert "upscore.conv_transpose.default" in seen


def test_tensor_subclasses_see_the_function() -> None:
    class Counted(torch.Tensor):
        calls: list[Any] = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.calls.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.randn(1, 2, 5).as_subclass(Counted)
    y = functional.conv_transpose1d(x, torch.ones(2, 3, 4), stride=2, padding="same")
    assert isinstance(y, Counted)
    assert functional.conv_transpose1d in Counted.calls


def test_inference_mode() -> None:
    with torch.inference_mode():
        layer = nn.ConvTranspose1d(2, 3, 4, stride=2)
        x = torch.randn(1, 2, 5)
        torch.testing.assert_close(layer(x), F.conv_transpose1d(x, layer.weight, layer.bias, stride=2))
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.conv_transpose1d(x, layer.weight, layer.bias, stride=2))
