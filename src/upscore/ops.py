"""Arrays in, arrays out: the transposed convolution, its adjoint and its gradients.

Arrays are NumPy arrays or anything that speaks DLPack on the CPU; what comes in decides what goes out.
Shapes are channels first, ``(N, C, *spatial)``, of any rank. float32 and float64 are computed natively;
float16 and bfloat16 are computed in float32 and returned as they came.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from upscore import engine
from upscore.arrays import Array, read
from upscore.errors import ArgumentError, ArgumentTypeError
from upscore.geometry import Geometry, Ints, Pairs, per_axis

__all__ = ["Plan", "conv", "conv_transpose", "conv_transpose_backward", "plan"]


def _check_weights(x: Array, w: Array, groups: int, channels: int, what: str) -> None:
    """Ranks, dtypes and channels of input and weights. ``channels``: the axis of w that meets x."""
    if x.ndim < 3:
        raise ArgumentError("x", "at least 3 dimensions (N, C, *spatial)", f"shape {x.shape}", "x[None]")
    if w.ndim != x.ndim:
        raise ArgumentError(
            "w", f"{x.ndim} dimensions (C_in, C_out/groups, *kernel), as x", f"shape {w.shape}", "w of x's rank"
        )
    if w.dtype != x.dtype:
        raise ArgumentTypeError("w", f"the dtype of x, {x.dtype.name}", w.dtype.name, f"w.astype('{x.dtype.name}')")
    if 0 in w.shape:
        raise ArgumentError("w", "no axis of size 0", f"shape {w.shape}", "at least one channel and one tap")
    if groups < 1 or w.shape[0] % groups:
        raise ArgumentError("groups", f"a divisor of the {w.shape[0]} channels of w's first axis", groups, "groups=1")
    _check_input(x, w.shape, groups, channels, what)


def _check_input(x: Array, w_shape: tuple[int, ...], groups: int, channels: int, what: str) -> None:
    if x.shape[1] != channels:
        raise ArgumentError(
            "x",
            f"{channels} channels, as {what} of w {w_shape} with groups={groups}",
            f"{x.shape[1]} (shape {x.shape})",
            f"x[:, :{channels}]",
        )
    if 0 in x.shape[2:]:
        raise ArgumentError("x", "spatial axes of at least 1", f"shape {x.shape}", "x with at least one position")


def _read_bias(bias: Any, w: Array, channels: int) -> Array | None:
    if bias is None:
        return None
    b, _ = read("bias", bias)
    if b.shape != (channels,):
        raise ArgumentError(
            "bias", f"shape ({channels},), one number per output channel", f"shape {b.shape}", "bias=None"
        )
    if b.dtype != w.dtype:
        raise ArgumentTypeError(
            "bias", f"the dtype of w, {w.dtype.name}", b.dtype.name, f"bias.astype('{w.dtype.name}')"
        )
    return b


class _Call(NamedTuple):
    shape: tuple[int, ...]  # of x
    geometry: Geometry
    size: tuple[int, ...]  # of the output
    usual: bool  # the size that follows from the layer, not one that was asked for


class Plan:
    """A transposed convolution with its weights packed once; call it on any batch and size.

    Made by :func:`plan`. ``geometry`` is the normal form, ``why`` says how the engine runs the last call.
    """

    def __init__(self, w: Array, bias: Array | None, geometry: Geometry, groups: int) -> None:
        self.geometry, self.groups = geometry, groups
        self.in_channels, self.out_channels = w.shape[0], w.shape[1] * groups
        self.dtype = w.dtype
        self._shape = w.shape
        self._packed = engine.Packed(w, bias, geometry, groups, method=engine.Method.FASTEST)
        self._last: _Call | None = None

    def __call__(self, x: Any, *, output_size: Ints | None = None) -> Any:
        """The layer on ``x`` (N, C_in, *spatial); ``output_size`` chooses another size, cut or filled at the end."""
        array, restore = read("x", x)
        call = self._last
        if call is None or not call.usual or call.shape != array.shape or array.dtype != self.dtype or output_size:
            call = self._last = self._settle(array, output_size)
        return restore(self._packed.run(array, call.geometry, call.size))

    def _settle(self, array: Array, output_size: Ints | None) -> _Call:
        """What is to be done with such an array, after checking that it can be."""
        if array.ndim != len(self._shape):
            dimensions = f"{len(self._shape)} dimensions (N, {self.in_channels}, *spatial)"
            raise ArgumentError("x", dimensions, f"shape {array.shape}", "x[None]")
        if array.dtype != self.dtype:
            expected = f"the dtype of the plan's weights, {self.dtype.name}"
            raise ArgumentTypeError("x", expected, array.dtype.name, f"x.astype('{self.dtype.name}')")
        _check_input(array, self._shape, self.groups, self.in_channels, "the first axis")
        n = array.shape[2:]
        geometry = self.geometry if output_size is None else self.geometry.with_output_size(n, output_size)
        return _Call(array.shape, geometry, geometry.output_size(n), output_size is None)

    @property
    def why(self) -> str:
        """How the engine runs the last call, and why; before the first call, what is needed to know."""
        if self._last is None:
            return "not run yet: the sizes decide; call the plan once"
        batch, _, *n = self._last.shape
        return self._packed.why(batch, self._last.geometry, tuple(n), self._last.size)

    def __repr__(self) -> str:
        g = self.geometry
        return (
            f"Plan({self.in_channels} -> {self.out_channels}, kernel={g.kernel}, stride={g.stride}, "
            f"dilation={g.dilation}, crop={g.crop}, groups={self.groups}, {self.dtype.name})"
        )


def plan(
    w: Any,
    bias: Any = None,
    *,
    stride: Ints = 1,
    padding: Pairs = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Plan:
    """Pack the weights of a transposed convolution once, to run it many times.

    Args:
        w: weights ``(C_in, C_out / groups, *kernel)``, PyTorch's and Caffe's layout.
        bias: ``(C_out,)`` or None.
        stride, padding, output_padding, dilation, groups: as in :func:`conv_transpose`.

    Where it is faster, a plan computes by minimal filtering (Winograd 1980) or folding (col2im), with weights that it
    transforms or packs again at the first such call and keeps: results differ in rounding from those of
    :func:`conv_transpose`, and where they are filtered a NaN or an infinity in x may spoil outputs up to three strides
    beyond those that its taps reach.

    Raises:
        ArgumentError: naming the argument that cannot work.

    >>> import numpy as np
    >>> layer = plan(np.ones((1, 1, 3, 3), "float32"), stride=2)
    >>> layer(np.array([[[[1, 2], [3, 4]]]], "float32"))[0, 0, 2].tolist()
    [4.0, 4.0, 10.0, 6.0, 6.0]
    """
    weights, _ = read("w", w)
    groups = per_axis("groups", groups, 1, least=1)[0]
    if weights.ndim < 3:
        raise ArgumentError(
            "w", "at least 3 dimensions (C_in, C_out/groups, *kernel)", f"shape {weights.shape}", "w[None]"
        )
    _check_weights(
        np.empty((0, weights.shape[0]) + (1,) * (weights.ndim - 2), weights.dtype),
        weights,
        groups,
        weights.shape[0],
        "the first axis",
    )
    geometry = Geometry.from_padding(
        weights.shape[2:], stride=stride, padding=padding, output_padding=output_padding, dilation=dilation
    )
    return Plan(weights, _read_bias(bias, weights, weights.shape[1] * groups), geometry, groups)


def conv_transpose(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Ints = 1,
    padding: Pairs = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    output_size: Ints | None = None,
) -> Any:
    """The transposed convolution: every input stamps the kernel, overlaps add.

    Args:
        x: input ``(N, C_in, *spatial)``.
        w: weights ``(C_in, C_out / groups, *kernel)``, not flipped: PyTorch's and Caffe's layout.
        bias: ``(C_out,)`` or None.
        stride: output steps per input step; an int or one per axis, as all that follow.
        padding: positions cut from the full output: an int, one per axis, or a (before, after) pair per axis.
        output_padding: positions given back at the end, less than the stride or the dilation.
        dilation: output steps between taps.
        groups: the channels are split into this many groups that do not mix.
        output_size: the size of the output, instead of what padding and output_padding come to at the end.

    Returns:
        ``(N, C_out, *((n - 1)*stride + dilation*(kernel - 1) + 1 - before - after + output_padding))``.
        A NaN or an infinity in x spoils the outputs that its taps reach, and may spoil others less than a stride
        away from them: phases that share their inputs multiply some of them by zero.

    Raises:
        ArgumentError: naming the argument that cannot work.

    Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", chapter 4;
    torch.nn.functional.conv_transpose2d.

    >>> import numpy as np
    >>> x = np.array([[[[1, 2], [3, 4]]]], "float32")
    >>> conv_transpose(x, np.ones((1, 1, 3, 3), "float32"), stride=2)[0, 0].astype(int).tolist()
    [[1, 1, 3, 2, 2], [1, 1, 3, 2, 2], [4, 4, 10, 6, 6], [3, 3, 7, 4, 4], [3, 3, 7, 4, 4]]
    """
    array, restore = read("x", x)
    weights, _ = read("w", w)
    groups = per_axis("groups", groups, 1, least=1)[0]
    _check_weights(array, weights, groups, weights.shape[0] if weights.ndim else 0, "the first axis")
    geometry = _geometry(array, weights, stride, padding, output_padding, dilation, output_size)
    b = _read_bias(bias, weights, weights.shape[1] * groups)
    size = geometry.output_size(array.shape[2:])
    once = array.shape[0], array.shape[2:], size, 0
    packed = engine.Packed(weights, b, geometry, groups, method=engine.Method.FASTEST, once=once)
    return restore(packed.run(array, geometry, size))


def _geometry(
    x: Array, w: Array, stride: Ints, padding: Pairs, output_padding: Ints, dilation: Ints, output_size: Ints | None
) -> Geometry:
    said = stride, padding, output_padding, dilation, output_size
    make = _known_geometry if all(map(_is_plain, said)) else _known_geometry.__wrapped__
    return make(() if output_size is None else x.shape[2:], w.shape[2:], *said)


def _adjoint(w: Array, bias: Array | None, geometry: Geometry, groups: int, y: Array, size: tuple[int, ...]) -> Array:
    """The adjoint on ``y`` (N, C_out, *m), of spatial size ``size``, with weights that are packed for this call."""
    once = y.shape[0], y.shape[2:], size, 0
    where = engine.Method.FASTEST
    packed = engine.Packed(w, bias, geometry, groups, adjoint=True, method=where, once=once)
    return packed.run(y, geometry, size)


def _is_plain(value: object) -> bool:
    """Whether values that are equal to this one say the same: 2.0 and True, which are refused, equal 2 and 1."""
    if type(value) is tuple:
        return all(type(v) is int for v in value)
    return value is None or type(value) is int


@functools.lru_cache(maxsize=256)
def _known_geometry(
    input_size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Ints,
    padding: Pairs,
    output_padding: Ints,
    dilation: Ints,
    output_size: Ints | None,
) -> Geometry:
    geometry = Geometry.from_padding(
        kernel, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation
    )
    return geometry if output_size is None else geometry.with_output_size(input_size, output_size)


def conv(
    x: Any, w: Any, bias: Any = None, *, stride: Ints = 1, padding: Pairs = 0, dilation: Ints = 1, groups: int = 1
) -> Any:
    """The ordinary convolution (without flip), the adjoint of :func:`conv_transpose` with the same weights.

    Args:
        x: input ``(N, C_in, *spatial)``.
        w: weights ``(C_out, C_in / groups, *kernel)``: torch.nn.functional.conv2d's layout, and the very array
            that the transposed convolution from C_out to C_in channels takes.
        bias: ``(C_out,)`` or None.
        stride, padding, dilation, groups: as in :func:`conv_transpose`; padding adds zeros here.

    Returns:
        ``(N, C_out, *(floor((m + before + after - dilation*(kernel - 1) - 1) / stride) + 1))``.

    Raises:
        ArgumentError: naming the argument that cannot work.

    >>> import numpy as np
    >>> conv(np.ones((1, 1, 5, 5), "float32"), np.ones((1, 1, 3, 3), "float32"), stride=2)[0, 0].tolist()
    [[9.0, 9.0], [9.0, 9.0]]
    """
    array, restore = read("x", x)
    weights, _ = read("w", w)
    groups = per_axis("groups", groups, 1, least=1)[0]
    _check_weights(
        array, weights, groups, weights.shape[1] * groups if weights.ndim > 1 else 0, "the second axis times groups"
    )
    geometry = _geometry(array, weights, stride, padding, 0, dilation, None)
    b = _read_bias(bias, weights, weights.shape[0])
    try:
        size = geometry.adjoint_size(array.shape[2:])
    except ArgumentError as error:
        raise ArgumentError("x", error.expected, error.got, error.example) from None
    return restore(_adjoint(weights, b, geometry, groups, array, size))


def conv_transpose_backward(
    grad_y: Any,
    x: Any,
    w: Any,
    *,
    stride: Ints = 1,
    padding: Pairs = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    output_size: Ints | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Any, Any, Any]:
    """The gradients of :func:`conv_transpose` with respect to input, weights and bias.

    Args:
        grad_y: gradient of the output, ``(N, C_out, *output)``.
        x, w, stride, padding, output_padding, dilation, groups, output_size: as in the forward call.
        output_mask: which of the three are wanted, as in ``torch.ops.aten.convolution_backward``; the others are None
            and cost nothing.

    Returns:
        ``(grad_x, grad_w, grad_bias)`` with the shapes of x, w and ``(C_out,)``.

    Raises:
        ArgumentError: naming the argument that cannot work.

    >>> import numpy as np
    >>> x, w = np.ones((1, 1, 2), "float32"), np.ones((1, 1, 3), "float32")
    >>> [g.tolist() for g in conv_transpose_backward(np.ones((1, 1, 5), "float32"), x, w, stride=2)]
    [[[[3.0, 3.0]]], [[[2.0, 2.0, 2.0]]], [5.0]]
    """
    array, restore = read("x", x)
    weights, restore_w = read("w", w)
    grad, _ = read("grad_y", grad_y)
    groups = per_axis("groups", groups, 1, least=1)[0]
    _check_weights(array, weights, groups, weights.shape[0] if weights.ndim else 0, "the first axis")
    geometry = _geometry(array, weights, stride, padding, output_padding, dilation, output_size)
    expected = (array.shape[0], weights.shape[1] * groups, *geometry.output_size(array.shape[2:]))
    if grad.shape != expected or grad.dtype != array.dtype:
        raise ArgumentError(
            "grad_y",
            f"the forward output's shape {expected} and dtype {array.dtype.name}",
            f"{grad.shape} {grad.dtype.name}",
            "numpy.ones_like(y)",
        )
    wanted = _read_mask(output_mask)
    if geometry.rank <= engine.NATIVE_RANK:
        at, of_y, of_weights = engine.lying(array), engine.lying(grad), engine.lying(weights)
        grads = engine.gradients(at, of_y, of_weights, array.dtype, geometry, groups, wanted)
    else:
        grads = (
            _adjoint(weights, None, geometry, groups, grad, array.shape[2:]) if wanted[0] else None,
            engine.weight_gradient(array, grad, geometry, groups, weights.shape[1]) if wanted[1] else None,
            engine.bias_gradient(grad) if wanted[2] else None,
        )
    back = restore, restore_w, restore_w
    of_x, of_w, of_bias = (None if g is None else to(g) for to, g in zip(back, grads, strict=True))
    return of_x, of_w, of_bias


def _read_mask(output_mask: Any) -> tuple[bool, ...]:
    mask = tuple(output_mask) if isinstance(output_mask, (tuple, list)) else ()
    if len(mask) != 3 or not all(isinstance(wanted, (bool, np.bool_)) for wanted in mask):
        expected = "three booleans, for input, weights and bias"
        raise ArgumentTypeError("output_mask", expected, repr(output_mask), "(True, True, False)")
    return tuple(map(bool, mask))
