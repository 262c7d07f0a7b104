"""The transposed convolution with the signatures of ``torch.nn.functional``, and a little more.

Beyond torch: ``padding`` may be ``"same"``, ``"valid"`` or (before, after) pairs, and ``output_size`` chooses the
size. Everything torch's function accepts gives torch's result, under autograd of any order, torch.compile,
torch.export, autocast and torch.func; what the engine does not compute (other devices and dtypes, forward-mode and
functorch transforms) is computed by torch's own kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from upscore.dialects.tensorflow import same_before
from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.geometry import Geometry, Ints, Pairs, per_axis
from upscore.nn import fallback, native, operators
from upscore.nn.errors import ShapeError, as_torch

__all__ = ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]

Padding = str | Pairs

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # since torch 2.7


class Terms(NamedTuple):
    """The arguments of a call besides its tensors; the names are torch's."""

    stride: Ints = 1
    padding: Padding = 0
    output_padding: Ints = 0
    groups: int = 1
    dilation: Ints = 1
    output_size: Ints | None = None


def conv_transpose1d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
) -> Tensor:
    """The 1-D transposed convolution: :func:`conv_transpose2d` on (N, C_in, L) or (C_in, L).

    >>> conv_transpose1d(torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 1, 3), stride=2)
    tensor([[[1., 1., 3., 2., 2.]]])
    """
    terms = Terms(stride, padding, output_padding, groups, dilation, output_size)
    if has_torch_function((input, weight, bias)):
        return _overridden(conv_transpose1d, input, weight, bias, terms)
    return apply(1, input, weight, bias, terms)


def conv_transpose2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
) -> Tensor:
    """The 2-D transposed convolution, ``torch.nn.functional.conv_transpose2d`` and more.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W).
        weight: (C_in, C_out / groups, kH, kW).
        bias: (C_out,) or None.
        stride: output steps per input step; an int or one per axis.
        padding: positions cut from the full output: an int, one per axis, or a (before, after) pair per axis.
            ``"valid"`` cuts nothing. ``"same"`` makes the output ``input * stride``, or ``output_size``, with the
            input where TensorFlow's SAME has it: an odd position is cut at the end.
        output_padding: positions given back at the end, less than the stride or the dilation.
        groups: the channels are split into this many groups that do not mix.
        dilation: output steps between taps.
        output_size: the spatial size of the output, cut or filled at the end; any size is accepted.

    Returns:
        (N, C_out, H_out, W_out) with ``H_out = (H - 1)*stride + dilation*(kH - 1) + 1 - before - after +
        output_padding``, channels last if ``input`` or ``weight`` is.

    Raises:
        ShapeError: (a RuntimeError and a ValueError) an argument has a value that cannot work.
        ArgumentTypeError: (a TypeError) an argument has a type that cannot work.

    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> conv_transpose2d(x, torch.ones(1, 1, 3, 3), stride=2, padding="same")[0, 0].int().tolist()
    [[1, 1, 3, 2], [1, 1, 3, 2], [4, 4, 10, 6], [3, 3, 7, 4]]
    >>> conv_transpose2d(x, torch.ones(1, 1, 3, 3), stride=2, padding=((1, 0), (0, 1))).shape
    torch.Size([1, 1, 4, 4])
    """
    terms = Terms(stride, padding, output_padding, groups, dilation, output_size)
    if has_torch_function((input, weight, bias)):
        return _overridden(conv_transpose2d, input, weight, bias, terms)
    return apply(2, input, weight, bias, terms)


def conv_transpose3d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
) -> Tensor:
    """The 3-D transposed convolution: :func:`conv_transpose2d` on (N, C_in, D, H, W) or (C_in, D, H, W).

    >>> conv_transpose3d(torch.ones(1, 2, 2, 3, 4), torch.ones(2, 5, 2, 2, 2), stride=2).shape
    torch.Size([1, 5, 4, 6, 8])
    """
    terms = Terms(stride, padding, output_padding, groups, dilation, output_size)
    if has_torch_function((input, weight, bias)):
        return _overridden(conv_transpose3d, input, weight, bias, terms)
    return apply(3, input, weight, bias, terms)


def _overridden(function: Any, x: Tensor, w: Tensor, bias: Tensor | None, terms: Terms) -> Tensor:
    """The call handed to the tensor subclass, mode or fx tracer that asked for it."""
    y: Tensor = handle_torch_function(function, (x, w, bias), x, w, bias, **terms._asdict())
    return y


def apply(rank: int, x: Tensor, w: Tensor, bias: Tensor | None, terms: Terms) -> Tensor:
    """The ``rank``-D transposed convolution of plain tensors."""
    if not isinstance(x, Tensor) or not isinstance(w, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise _not_a_tensor(x, w, bias)
    compiling, records = torch.compiler.is_compiling(), native.records(x, w, bias)
    if not compiling:
        terms = _as_key(terms)
        known = None if records else native.again(x, w, bias, (rank, terms))
        if known is not None:
            return known
    shapes = x.shape, w.shape, None if bias is None else bias.shape
    try:
        if compiling:
            geometry = settle(rank, *shapes, terms)
        else:
            geometry, size = _settled(rank, *shapes, terms)
    except ArgumentError as error:
        raise as_torch(error) from None
    if x.dim() == rank + 1:
        return apply(rank, x[None], w, bias, terms)[0]
    if not compiling and native.is_plain(x, w, bias):
        if not records:
            return native.conv_transpose(x, w, bias, geometry, size, terms.groups, keep=True, asked=(rank, terms))
        recorded: Tensor = operators.Recorded.apply(x, w, bias, geometry, size, terms.groups)  # type: ignore[no-untyped-call]
        return recorded
    return _dispatch(x, w, bias, geometry, terms.groups, keep=not records or _is_exporting())


def _dispatch(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, groups: int, *, keep: bool) -> Tensor:
    """Through torch's dispatcher, where autograd, compilers, autocast and transforms are."""
    device = x.device.type
    if (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    ):
        dtype = torch.get_autocast_dtype(device)
        x, w, bias = x.to(dtype), w.to(dtype), None if bias is None else bias.to(dtype)
    for name, t in (("weight", w), ("bias", bias)):
        if t is not None and (t.dtype != x.dtype or t.device != x.device):
            raise ShapeError(
                name,
                f"the dtype and device of input, {x.dtype} on {x.device}",
                f"{t.dtype} on {t.device}",
                f"{name}.to(input)",
            )
    before, after = ([pair[side] for pair in geometry.crop] for side in (0, 1))
    terms = list(geometry.stride), list(geometry.dilation), before, after, groups
    if not native.is_native(x) or native.is_transformed():
        return fallback.conv_transpose(x, w, bias, *terms)
    y: Tensor = operators.conv_transpose(x, w, bias, *terms, keep)
    return y


def settle(rank: int, x: Sequence[int], w: Sequence[int], bias: Sequence[int] | None, terms: Terms) -> Geometry:
    """The normal form of a call whose tensors have these shapes, or an error if they do not fit."""
    _check(rank, x, w, bias, per_axis("groups", terms.groups, 1, least=1)[0])
    n, kernel, padding = x[-rank:], tuple(w[2:]), terms.padding
    if padding == "same":
        return _same(kernel, n, terms)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise ArgumentError("padding", "'same', 'valid', integers or pairs", repr(padding), "padding='same'")
    geometry = Geometry.from_padding(
        kernel,
        stride=terms.stride,
        padding=padding,
        output_padding=terms.output_padding,
        dilation=terms.dilation,
        rank=rank,
    )
    return geometry if terms.output_size is None else geometry.with_output_size(n, terms.output_size)


def _same(kernel: tuple[int, ...], n: Sequence[int], terms: Terms) -> Geometry:
    """TensorFlow's SAME, to ``n * stride`` or ``output_size``."""
    rank = len(kernel)
    if any(per_axis("output_padding", terms.output_padding, rank)):
        expected, example = "0 with padding='same'", "output_size=, for another size"
        raise ArgumentError("output_padding", expected, terms.output_padding, example)
    plain = Geometry(kernel, terms.stride, terms.dilation, rank=rank)
    if terms.output_size is None:
        # The crop does not depend on the input's size, which may be symbolic: 1 becomes ``stride``.
        n, m = (1,) * rank, plain.stride
    else:
        m = per_axis("output_size", terms.output_size, rank, least=1)
    before = [same_before(ni, mi, s, e) for ni, mi, s, e in zip(n, m, plain.stride, plain.extent, strict=True)]
    crop = [(lo, 0) for lo in before]
    return Geometry(kernel, plain.stride, plain.dilation, crop).with_output_size(n, m)


@functools.lru_cache(maxsize=1024)
def _settled(rank: int, x: Any, w: Any, bias: Any, terms: Terms) -> tuple[Geometry, tuple[int, ...]]:
    """The geometry and the output's size, remembered."""
    geometry = settle(rank, x, w, bias, terms)
    return geometry, geometry.output_size(x[-rank:])


def _as_key(terms: Terms) -> Terms:
    """``terms``, which lists would keep from being one; what has a wrong type is found where it is used."""
    try:
        hash(terms)
    except TypeError:
        return Terms(*map(_frozen, terms))
    return terms


def _frozen(value: Any) -> Any:
    """``value`` with its sequences as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, (tuple, list)) else value


def _not_a_tensor(x: object, w: object, bias: object) -> ArgumentError:
    given = {"input": x, "weight": w, "bias": bias}
    name = next(n for n, t in given.items() if not isinstance(t, Tensor))
    return ArgumentTypeError(name, "a torch.Tensor", type(given[name]).__name__, f"torch.as_tensor({name})")


def _check(rank: int, x: Sequence[int], w: Sequence[int], bias: Sequence[int] | None, groups: int) -> None:
    """Ranks and channels."""
    if len(x) not in (rank + 1, rank + 2):
        raise ArgumentError(
            "input",
            f"{rank + 2} dimensions (batched) or {rank + 1} (unbatched) for conv_transpose{rank}d",
            f"shape {tuple(x)}",
            "input[None]" if len(x) <= rank else f"conv_transpose{len(x) - 2}d",
        )
    if len(w) != rank + 2 or 0 in w:
        raise ArgumentError(
            "weight",
            f"{rank + 2} dimensions (C_in, C_out/groups, *kernel) of at least 1",
            f"shape {tuple(w)}",
            f"torch.ones{(x[-rank - 1], 1, *(3,) * rank)}",
        )
    if w[0] % groups:
        raise ArgumentError("groups", f"a divisor of the {w[0]} channels of weight's first axis", groups, "groups=1")
    if x[-rank - 1] != w[0]:
        raise ArgumentError(
            "input",
            f"{w[0]} channels, as the first axis of weight {tuple(w)}",
            f"{x[-rank - 1]} (shape {tuple(x)})",
            f"a weight of shape {(x[-rank - 1], *w[1:])}",
        )
    if bias is not None and tuple(bias) != (w[1] * groups,):
        raise ArgumentError(
            "bias", f"shape ({w[1] * groups},), one number per output channel", f"shape {tuple(bias)}", "bias=None"
        )
