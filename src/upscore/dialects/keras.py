"""Keras' ``Conv{1,2,3}DTranspose`` and ``UpSampling{1,2,3}D``.

With ``e = dilation_rate (k - 1) + 1``, the size and what is cut::

    valid                     m = s(n - 1) + max(e, s)                 nothing before
    valid, output_padding p   m = s(n - 1) + e + p                     nothing before
    same                      m = s n                                  of e - s (at least 0) the smaller half before
    same, output_padding p    m = s(n - 1) + e % 2 + p                 the smaller half before

Keras refuses strides together with dilation, and an output padding as large as the stride. Kernels are
``(*K, C_out, C_in)``, not flipped. There are no groups.

Sources: keras.layers.Conv2DTranspose and UpSampling2D documentation; keras/src/backend/common/backend_utils.py of
Keras 3. Older Keras 3 releases ran the torch backend with symmetric padding, which shifts ``same`` by one pixel
where the stride is even and the kernel odd: ``backend="torch-symmetric"`` reads a layer as those ran it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import Layout
from upscore.dialects.snippet import after, call, channels_first, channels_last, execute, needs_pad, require
from upscore.dialects.translation import (
    Parameters,
    RefusalError,
    Terms,
    Weights,
    Written,
    build,
    check,
    find_rank,
    plain_axes,
    refuse_groups,
    refuse_rank,
    say_crop,
    take_weights,
    zero_crop,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, bilinear_kernel, per_axis

__all__ = ["LAYOUT", "border_deficit", "code", "formula", "read", "run", "upsampling", "write"]

SYSTEM = "Keras"
LAYOUT = Layout("koi")
_NAMED = {
    "filters", "kernel_size", "strides", "padding", "output_padding", "data_format", "dilation_rate", "use_bias",
    "activation", "groups", "rank",
}  # fmt: skip
_IGNORED = {"name", "trainable", "dtype", "registered_name", "batch_input_shape", "build_config", "module"}


def _same_crop(s: int, e: int, extra: int | None) -> tuple[int, int]:
    total = e - s if extra is None else e - e % 2 - extra
    before = max(total // 2, 0)
    return before, total - before


def _torch_symmetric_crop(s: int, e: int, padding: str, extra: int | None) -> tuple[int, int]:
    """The crop of the torch backend that could only pad both sides alike (Keras 3.0 and the releases after it)."""
    if padding == "valid":
        return 0, -min(max(e, s) - e if extra is None else extra, s - 1)
    extra = s - e % 2 if extra is None else extra
    pad = max(-((e % 2 - e + extra) // 2), 0)
    return pad, pad - min(2 * pad + e % 2 - e + extra, s - 1)


def _source(source: Any, weights: Weights | None) -> tuple[dict[str, Any], Weights | None]:
    """Constructor arguments out of a config, a serialised layer or a layer object."""
    if not isinstance(source, Mapping):
        if not hasattr(source, "get_config") or not hasattr(source, "get_weights"):
            raise ArgumentError(
                "layer", "a keras.layers.Conv2DTranspose", type(source).__name__, "model.get_layer(name)"
            )
        arrays = [np.asarray(w) for w in source.get_weights()]
        config = dict(source.get_config(), rank=int(getattr(source, "rank", 2)))
        return config, dict(zip(("kernel", "bias"), arrays, strict=False)) or None
    config = dict(source)
    if "config" in config:  # what keras.layers.serialize and model.to_json give
        name = str(config.get("class_name", ""))
        config = dict(config["config"])
        digits = [c for c in name if c.isdigit()]
        if digits:
            config.setdefault("rank", int(digits[0]))
    return config, weights


def read(
    parameters: Parameters | Any,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
    backend: str | None = None,
) -> Layer:
    """A ``Conv{1,2,3}DTranspose``, or an ``UpSampling{1,2,3}D`` (see :func:`upsampling`), in the normal form.

    Args:
        parameters: the constructor's arguments, ``layer.get_config()``, a serialised layer, or the layer itself.
            An UpSampling is known by its ``size``.
        weights: ``kernel`` ``(*K, C_out, C_in)`` and ``bias`` ``(C_out,)``.
        c_in: channels of the input, where no weights say it.
        rank: spatial axes, where neither the config nor the weights say it (then 2).
        input_size: not needed here; the same in every dialect.
        backend: "torch-symmetric" for the old torch backend; every other one computes the same.

    Raises:
        ArgumentError: where Keras raises; for an activation, which is no part of the layer.

    >>> read({"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"}, c_in=8).geometry.crop
    ((0, 1), (0, 1))
    """
    config, weights = _source(parameters, weights)
    if "size" in config:
        if c_in is None:
            raise ArgumentError("c_in", "the number of channels, which UpSampling does not say", None, "c_in=3")
        interpolation = config.get("interpolation", "nearest")
        return upsampling(config["size"], c_in, interpolation=interpolation, rank=rank or config.get("rank", 2))
    known = {k: v for k, v in config.items() if k not in _IGNORED and not k.endswith(("izer", "constraint"))}
    check(SYSTEM, known, _NAMED)
    if config.get("activation") not in (None, "linear"):
        raise ArgumentError("activation", "'linear': apply it after the layer", config["activation"], "None")
    if config.get("groups", 1) != 1:
        raise ArgumentError("groups", "1, all that Keras' transposed layers have", config["groups"], "groups=1")
    rank = rank or config.get("rank") or find_rank(config, weights, "kernel")
    kernel = per_axis("kernel_size", config.get("kernel_size", 1), rank, least=1)
    stride = per_axis("strides", config.get("strides", 1), rank, least=1)
    dilation = per_axis("dilation_rate", config.get("dilation_rate", 1), rank, least=1)
    if max(stride) > 1 and max(dilation) > 1:
        raise ArgumentError(
            "dilation_rate", "1 where strides are above 1, as Keras demands", dilation, "dilation_rate=1"
        )
    extra = config.get("output_padding")
    extras = (None,) * rank if extra is None else per_axis("output_padding", extra, rank, least=0)
    for p, s in zip(extras, stride, strict=True):
        if p is not None and p >= s:
            raise ArgumentError("output_padding", f"less than the stride {s}", p, f"output_padding={s - 1}")
    mode = str(config.get("padding", "valid")).lower()
    if mode not in ("valid", "same"):
        raise ArgumentError("padding", "'valid' or 'same'", repr(mode), "padding='same'")
    crop = []
    for s, e, p in zip(stride, Geometry(kernel, stride, dilation).extent, extras, strict=True):
        if backend == "torch-symmetric":
            crop.append(_torch_symmetric_crop(s, e, mode, p))
        elif mode == "same":
            crop.append(_same_crop(s, e, p))
        else:
            crop.append((0, -(max(s - e, 0) if p is None else p)))
    return build(
        Geometry(kernel, stride, dilation, tuple(crop), rank=rank),
        take_weights(weights, ("kernel", "bias"), LAYOUT, 1),
        c_in=c_in,
        c_out=config.get("filters"),
        groups=1,
        has_bias=bool(config.get("use_bias", True)) if not weights else "bias" in weights,
    )


def _said(g: Geometry) -> tuple[str, tuple[int, ...] | None] | None:
    """``(padding, output_padding)`` that say this crop on every backend, or None."""
    axes = list(zip(g.stride, g.extent, g.crop, strict=True))
    if all((lo, hi) == (0, -max(s - e, 0)) for s, e, (lo, hi) in axes):
        return "valid", None
    if all((lo, hi) == _same_crop(s, e, None) for s, e, (lo, hi) in axes):
        return "same", None
    if all(lo == 0 and -s < hi <= 0 for s, _, (lo, hi) in axes):
        return "valid", tuple(-hi for _, hi in g.crop)
    extras = tuple(e - e % 2 - lo - hi for _, e, (lo, hi) in axes)
    if all(
        # TensorFlow's backend needs at least one position more than s(n - 1)
        0 <= p < s and p + e % 2 >= 1 and _same_crop(s, e, p) == pair
        for (s, e, pair), p in zip(axes, extras, strict=True)
    ):
        return "same", extras
    return None


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The constructor's arguments and the weights of a layer.

    Raises:
        RefusalError: for groups, more than 3 axes, dilation with strides, or a crop that neither padding says,
            unless ``allow_crop``: then valid makes everything and ``crop`` has to follow.
    """
    refuse_rank(SYSTEM, layer, (1, 2, 3), "upscore.conv_transpose, which has any rank")
    refuse_groups(SYSTEM, layer)
    g, left = layer.geometry, zero_crop(layer.rank)
    if max(g.stride) > 1 and max(g.dilation) > 1:
        closest = f"dilation_rate=1 and a kernel of {g.extent}, zeros between the taps"
        raise RefusalError(SYSTEM, "dilation_rate", "1 where strides are above 1", g.dilation, closest)
    said = _said(g)
    if said is None:
        if not allow_crop:
            raise RefusalError(
                SYSTEM,
                "padding",
                "nothing cut (valid), or halves with the odd position cut after (same)",
                g.crop,
                f"padding='valid', output_padding=0, then {say_crop(g.crop)}",
            )
        said, left = ("valid", (0,) * layer.rank), g.crop
    parameters = {
        "filters": layer.c_out,
        "kernel_size": g.kernel,
        "strides": g.stride,
        "padding": said[0],
        "output_padding": said[1],
        "dilation_rate": g.dilation,
        "use_bias": layer.has_bias,
    }
    weights = {}
    if layer.weight is not None:
        weights["kernel"] = LAYOUT.write(layer.weight)
    if layer.bias is not None:
        weights["bias"] = layer.bias
    return Written("keras", parameters, weights, LAYOUT, crop=left)


def code(layer: Layer) -> str:
    """The lines that build, fill and call the layer; ``x`` is ``(N, *size, C)``."""
    written = write(layer, allow_crop=True)
    bias_last = layer.has_bias and needs_pad(written.crop)
    arguments = dict(written.parameters, data_format="channels_last")
    arguments["use_bias"] = layer.has_bias and not bias_last
    weights = f"{LAYOUT.code('weight', layer.weight_shape)}" + (", bias" if arguments["use_bias"] else "")
    lines = [
        "import keras",
        "",
        f"layer = {call(f'keras.layers.Conv{layer.rank}DTranspose', **arguments)}",
        "layer.build(x.shape)",
        f"layer.set_weights([{weights}])  # {LAYOUT}",
        "y = layer(x)",
        *after(
            written.crop,
            channels="last",
            pad="keras.ops.pad",
            bias="keras.ops.convert_to_tensor(bias)" if bias_last else None,
        ),
    ]
    return "\n".join(lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in Keras, for ``x`` ``(N, C, *size)``, on the backend that is configured."""
    keras = require("keras", "running a layer in Keras")
    y = execute(code(layer), layer, keras.ops.convert_to_tensor(channels_last(x)))
    return channels_first(keras.ops.convert_to_numpy(y))


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in Keras' names."""
    p = write(layer).parameters
    axes = plain_axes(layer, input_size)
    if p["padding"] == "same" and p["output_padding"] is None:
        return "strides*n", tuple({"n": axis["n"], "strides": axis["stride"]} for axis in axes)
    extras = p["output_padding"] or (None,) * layer.rank
    for axis, extra in zip(axes, extras, strict=True):
        axis["strides"] = axis["stride"]
        axis["extent"] = axis["dilation"] * (axis["kernel"] - 1) + 1
        axis["output_padding"] = max(axis["strides"] - axis["extent"], 0) if extra is None else extra
    if p["padding"] == "same":
        return "strides*(n - 1) + extent % 2 + output_padding", axes
    return "strides*(n - 1) + extent + output_padding", axes


def upsampling(size: Ints, channels: int, *, interpolation: str = "nearest", rank: int = 2) -> Layer:
    """``UpSampling{1,2,3}D`` as a transposed convolution with one group per channel.

    Nearest is exact everywhere: each input is stamped as a block of ones. Bilinear (2-D in Keras) is exact where
    all inputs it needs exist; at the borders Keras repeats the edge, the layer has zeros there:
    :func:`border_deficit` says how much is missing.

    Source: keras.layers.UpSampling2D documentation (half-pixel centres, edges clamped).

    >>> upsampling(2, channels=3).geometry
    Geometry(kernel=(2, 2), stride=(2, 2), dilation=(1, 1), crop=((0, 0), (0, 0)))
    """
    factors = per_axis("size", size, rank, least=1)
    if interpolation == "nearest":
        geometry = Geometry(factors, factors, rank=rank)
        return Layer.from_weight(geometry, np.ones((channels, 1, *factors), np.float32), groups=channels)
    if interpolation != "bilinear":
        raise ArgumentError("interpolation", "'nearest' or 'bilinear'", repr(interpolation), "'bilinear'")
    weight: Array = np.ones((), np.float64)
    for factor in factors:
        weight = np.multiply.outer(weight, [float(v) for v in _tent(factor)])
    sizes = [bilinear_kernel(factor) for factor in factors]
    geometry = Geometry(tuple(k for k, _ in sizes), factors, 1, tuple(p for _, p in sizes), rank=rank)
    full = np.broadcast_to(weight.astype(np.float32), (channels, 1, *geometry.kernel))
    return Layer.from_weight(geometry, full, groups=channels)


def _tent(factor: int) -> list[Fraction]:
    """The taps of linear interpolation by ``factor``, exactly."""
    kernel, _ = bilinear_kernel(factor)
    middle = Fraction(kernel - 1, 2)
    return [1 - abs(t - middle) / factor for t in range(kernel)]


def border_deficit(factor: int, size: int) -> tuple[Fraction, ...]:
    """The share of weight missing at each output position of a bilinear upsampling along one axis.

    Keras' result is the layer's plus this share times the edge's value (the near edge), because it repeats the
    edge where the layer has zeros. 0 everywhere but for ``factor // 2`` positions at both ends. ``size`` is the
    input's.

    >>> [str(v) for v in border_deficit(2, 3)]
    ['1/4', '0', '0', '0', '0', '1/4']
    """
    kernel, pad = bilinear_kernel(factor)
    taps = _tent(factor)
    total = [Fraction(0)] * (factor * (size - 1) + kernel)
    for i in range(size):
        for t, tap in enumerate(taps):
            total[i * factor + t] += tap
    return tuple(1 - v for v in total[pad : pad + factor * size])
