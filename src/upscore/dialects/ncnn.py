"""ncnn's ``Deconvolution``, ``Deconvolution1D``, ``Deconvolution3D`` and their ``DepthWise`` forms with groups.

Parameters are numbers: per axis a kernel, dilation, stride, a pad at each side and an output pad at the end, width
first. ``m = s(n - 1) + d(k - 1) + 1 - pad_before - pad_after + output_pad``. A pad of -233 (SAME_UPPER) or -234
(SAME_LOWER) takes the size from ``output_w``, ``output_h`` and cuts what is too much, the odd position after or
before; without such a size nothing is cut. Weights are ``(C_out, C_in / groups, *K)`` group by group, not flipped.

Source: ncnn's docs/developer-guide/operators.md and ``src/layer/deconvolution*.cpp``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import Layout
from upscore.dialects.snippet import require
from upscore.dialects.translation import (
    Parameters,
    RefusalError,
    Terms,
    Weights,
    Written,
    build,
    check,
    plain_axes,
    refuse_rank,
    take_weights,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints

__all__ = ["LAYOUT", "code", "formula", "read", "run", "write"]

SYSTEM = "ncnn"
LAYOUT = Layout("(go)ik")
SAME_UPPER, SAME_LOWER = -233, -234
# Parameter numbers in the order of our axes (height before width, depth first).
_IDS: dict[int, dict[str, tuple[int, ...]]] = {
    1: {"kernel": (1,), "dilation": (2,), "stride": (3,), "before": (4,), "after": (15,), "more": (18,), "size": (20,)},
    2: {
        "kernel": (11, 1), "dilation": (12, 2), "stride": (13, 3), "before": (14, 4), "after": (16, 15),
        "more": (19, 18), "size": (21, 20),
    },
    3: {
        "kernel": (21, 11, 1), "dilation": (22, 12, 2), "stride": (23, 13, 3), "before": (24, 14, 4),
        "after": (17, 16, 15), "more": (20, 19, 18), "size": (27, 26, 25),
    },
}  # fmt: skip
_OTHERS = {0, 5, 6, 7, 9, 10, 28}
_TYPES = {1: "Deconvolution{}1D", 2: "Deconvolution{}", 3: "Deconvolution{}3D"}


def _of_line(line: str) -> dict[int | str, Any]:
    """The parameters of a line of a ``.param`` file."""
    words = line.split()
    if len(words) < 4 or not words[0].startswith("Deconvolution"):
        raise ArgumentError(
            "line", "a Deconvolution line of a .param file", repr(line), "'Deconvolution up 1 1 x y 0=1 1=4'"
        )
    parameters: dict[int | str, Any] = {"type": words[0]}
    try:
        said = [word.split("=", 1) for word in words[4 + int(words[2]) + int(words[3]) :]]
        parameters.update({int(key): int(float(value)) for key, value in said if not key.startswith("-")})
    except (ValueError, OverflowError):
        raise ArgumentError("line", "number=number after the names of the blobs", repr(line), "0=1 1=4 3=2") from None
    return parameters


def read(
    parameters: Mapping[Any, Any] | str,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A Deconvolution layer in the normal form.

    Args:
        parameters: ``{"type": "Deconvolution", 0: num_output, 1: kernel_w, ...}``, or the line of the ``.param`` file.
        weights: ``weight_data`` (flat, or ``(C_out, C_in / groups, *K)``) and ``bias_data``.
        c_in: channels of the input; from parameter 6 or the weights.
        rank: from the type.
        input_size: of the input; needed only where an output size is set.

    Raises:
        ArgumentError: for an activation (parameter 9), which is no part of the layer, or numbers ncnn has not.

    >>> read("Deconvolution up 1 1 x y 0=4 1=3 3=2 5=0 6=288").output_size((5, 5))
    (11, 11)
    """
    said: Parameters = _of_line(parameters) if isinstance(parameters, str) else parameters  # type: ignore[assignment]
    kind = str(said.get("type", "Deconvolution"))
    rank = {"1D": 1, "3D": 3}.get(kind[-2:], 2)
    values: dict[int, Any] = {int(k): v for k, v in said.items() if k != "type"}
    ids = _IDS[rank]
    check(SYSTEM, {str(k): v for k, v in values.items()}, {str(i) for i in _OTHERS.union(*ids.values())})
    if values.get(9, 0):
        raise ArgumentError("9 (activation_type)", "0: apply it after the layer", values[9], "9=0")

    def axes(name: str, default: int) -> tuple[int, ...]:
        """Values by axis; what is left out follows the width, pads after follow those before (as ncnn loads them)."""
        width = values.get(ids[name][-1], default)
        return tuple(int(values.get(i, width)) for i in ids[name])

    kernel, stride, dilation = axes("kernel", 0), axes("stride", 1), axes("dilation", 1)
    before = axes("before", 0)
    # ncnn loads 15 (right) after 4 (left), 14 (top) after 4, 16 (bottom) after 14
    after = tuple(int(values.get(i, b)) for i, b in zip(ids["after"], before, strict=True))
    more, size = axes("more", 0), axes("size", 0)
    plain = Geometry(kernel, stride, dilation, rank=rank)
    if 0 not in size:
        geometry = _with_size(plain, size, before, more, input_size)
    elif min(before) in (SAME_UPPER, SAME_LOWER):
        geometry = Geometry(kernel, stride, dilation, tuple((0, -m) for m in more))
    else:
        sides = zip(before, after, more, strict=True)
        geometry = Geometry(kernel, stride, dilation, tuple((lo, hi - m) for lo, hi, m in sides))
    groups = int(values.get(7, 1))
    c_out = int(values[0]) if 0 in values else None
    if 6 in values and c_out:
        c_in = int(values[6]) // (c_out // groups) // int(np.prod(kernel))
    if weights and c_out:
        data = np.asarray(weights.get("weight_data"))
        weights = {**weights, "weight_data": data.reshape(c_out, -1, *kernel)}
    found = take_weights(weights, ("weight_data", "bias_data"), LAYOUT, groups)
    return build(geometry, found, c_in=c_in, c_out=c_out, groups=groups, has_bias=bool(values.get(5, 0)))


def _with_size(
    plain: Geometry, size: tuple[int, ...], before: tuple[int, ...], more: tuple[int, ...], input_size: Ints | None
) -> Geometry:
    if input_size is None:
        raise ArgumentError("input_size", "the input's size beside output_w and output_h", None, "input_size=16")
    if min(before) not in (SAME_UPPER, SAME_LOWER):
        expected = f"{SAME_UPPER} or {SAME_LOWER} where an output size is set: ncnn cuts by those alone"
        raise ArgumentError("4 (pad_left)", expected, before, f"4={SAME_UPPER}")
    full = Geometry(plain.kernel, plain.stride, plain.dilation, tuple((0, -m) for m in more)).output_size(input_size)
    cut = [f - m for f, m in zip(full, size, strict=True)]
    if min(cut) < 0:
        raise ArgumentError("20 (output_w)", f"a size of at most {full}", size, f"20={full[-1]}")
    lo = [c // 2 if min(before) == SAME_UPPER else c - c // 2 for c in cut]
    crop = tuple((a, c - a - m) for a, c, m in zip(lo, cut, more, strict=True))
    return Geometry(plain.kernel, plain.stride, plain.dilation, crop)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The parameters and weights of a layer.

    Raises:
        RefusalError: for more than 3 axes, or a negative crop before.
    """
    refuse_rank(SYSTEM, layer, (1, 2, 3), "upscore.conv_transpose, which has any rank")
    g = layer.geometry
    if min(lo for lo, _ in g.crop) < 0:
        closest = f"a kernel of {layer.with_zero_taps().geometry.kernel} whose added taps are 0"
        raise RefusalError(SYSTEM, "pad_left, pad_top", "at least 0", g.crop, closest)
    ids = _IDS[layer.rank]
    parameters: dict[Any, Any] = {
        "type": _TYPES[layer.rank].format("DepthWise" if layer.groups > 1 else ""),
        0: layer.c_out,
        5: int(layer.has_bias),
        6: int(np.prod(layer.weight_shape)),
    }
    if layer.groups > 1:
        parameters[7] = layer.groups
    values = {
        "kernel": g.kernel,
        "dilation": g.dilation,
        "stride": g.stride,
        "before": tuple(lo for lo, _ in g.crop),
        "after": tuple(max(hi, 0) for _, hi in g.crop),
        "more": tuple(max(-hi, 0) for _, hi in g.crop),
    }
    for name, said in values.items():
        parameters.update(zip(ids[name], said, strict=True))
    weights = {}
    if layer.weight is not None:
        weights["weight_data"] = LAYOUT.write(layer.weight, layer.groups)
    if layer.bias is not None:
        weights["bias_data"] = layer.bias
    return Written("ncnn", parameters, weights, LAYOUT)


def code(layer: Layer) -> str:
    """The line of the ``.param`` file; the weights follow in the ``.bin`` file as write() orders them."""
    p = dict(write(layer).parameters)
    kind = p.pop("type")
    return f"{kind} upscore 1 1 x y " + " ".join(f"{k}={v}" for k, v in sorted(p.items())) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ncnn on the CPU in float32, for ``x`` ``(N, C, *size)``."""
    ncnn = require("ncnn", "running a layer in ncnn")
    written = write(layer)
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = 1
    for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{half}", False)
    with tempfile.TemporaryDirectory() as folder:
        param, model = Path(folder, "layer.param"), Path(folder, "layer.bin")
        param.write_text(f"7767517\n2 2\nInput in 0 1 x\n{code(layer)}", encoding="utf-8")
        arrays = [np.ascontiguousarray(a, np.float32).tobytes() for a in written.weights.values()]
        model.write_bytes(bytes(4) + b"".join(arrays))  # the tag 0: float32 weights follow
        if net.load_param(str(param)) or net.load_model(str(model)):
            raise ArgumentError("layer", "a layer that this ncnn loads", code(layer), "a newer ncnn")
    outputs = []
    for sample in np.ascontiguousarray(x, np.float32):
        extractor = net.create_extractor()
        extractor.input("x", ncnn.Mat(sample).clone())
        outputs.append(np.array(extractor.extract("y")[1]))
    return np.stack(outputs)


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in ncnn's names."""
    write(layer)
    axes = plain_axes(layer, input_size)
    for axis in axes:
        axis.update(pad_before=axis["before"], pad_after=max(axis["after"], 0), output_pad=max(-axis["after"], 0))
    return "stride*(n - 1) + dilation*(kernel - 1) + 1 - pad_before - pad_after + output_pad", axes
