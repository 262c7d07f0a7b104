"""ONNX's ``ConvTranspose`` (opsets 1 to 22) and ``MaxUnpool``.

``m = s(n - 1) + output_padding + d(k - 1) + 1 - pads_begin - pads_end``. Where ``output_shape`` is given, or
``auto_pad`` is SAME (then ``m = s n``), the pads are computed: what is too much is halved, and an odd position goes
to the **end** with SAME_UPPER and to the **beginning** with everything else, NOTSET included. ``output_padding``
takes part in that computation but adds nothing to ``output_shape``. Weights are ``(C_in, C_out / group, *K)``, not
flipped.

Opsets below 11 state the rule for the odd position the other way round; ONNX Runtime computes every opset as
opset 11 says, and so does this file. An ``output_shape`` up to a stride beyond what the taps reach adds the rest at
the end. SAME with a kernel below the stride would have to add positions, and engines differ (ONNX Runtime leaves
the output shorter), so ``read`` refuses it.

Sources: the ONNX operator schemas, onnx.reference, and ONNX Runtime's results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import NORMAL
from upscore.dialects.snippet import execute, require
from upscore.dialects.translation import (
    Crop,
    Parameters,
    RefusalError,
    Terms,
    Weights,
    Written,
    build,
    check,
    find_rank,
    plain_axes,
    take_weights,
    zero_crop,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["attributes", "code", "formula", "plane_switches", "read", "run", "tensor_switches", "unpool", "write"]

SYSTEM = "ONNX"
_KNOWN = {
    "auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides", "filters",
}  # fmt: skip


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a NodeProto as plain values."""
    found: dict[str, Any] = {}
    for a in node.attribute:
        if a.name == "auto_pad":
            found[a.name] = a.s.decode()
        else:
            found[a.name] = int(a.i) if a.name == "group" else [int(v) for v in a.ints]
    return found


def read(
    parameters: Parameters | Any,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A ``ConvTranspose`` node in the normal form.

    Args:
        parameters: the node's attributes, or the NodeProto; ``kernel_shape`` and ``filters`` (output channels)
            where there are no weights.
        weights: ``W`` ``(C_in, C_out / group, *K)`` and ``B`` ``(C_out,)``.
        c_in: channels of the input, where no weights say it.
        rank: spatial axes, where nothing else says it.
        input_size: of X; needed only with ``output_shape``.

    Raises:
        ArgumentError: naming the attribute; where positions would have to be added by computed pads.

    >>> said = {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER", "filters": 4}
    >>> read(said, c_in=8).geometry.crop
    ((1, 0), (1, 0))
    """
    said: Parameters = parameters if isinstance(parameters, Mapping) else attributes(parameters)
    check(SYSTEM, said, _KNOWN)
    groups = int(said.get("group", 1))
    found = take_weights(weights, ("W", "B"), NORMAL, groups)
    rank = rank or find_rank(said, weights, "W")
    kernel = said.get("kernel_shape") if found[0] is None else found[0].shape[2:]
    if kernel is None:
        raise ArgumentError("kernel_shape", "its size, where no weights are given", None, "kernel_shape=[4, 4]")
    plain = Geometry(
        tuple(kernel),
        per_axis("strides", said.get("strides") or 1, rank, least=1),
        per_axis("dilations", said.get("dilations") or 1, rank, least=1),
        rank=rank,
    )
    more = per_axis("output_padding", said.get("output_padding") or 0, rank, least=0)
    for p, s, d in zip(more, plain.stride, plain.dilation, strict=True):
        if p >= max(s, d):
            expected = f"less than the larger of stride {s} and dilation {d}"
            raise ArgumentError("output_padding", expected, p, f"output_padding={max(s, d) - 1}")
    crop = _crop(plain, said, more, input_size)
    geometry = Geometry(plain.kernel, plain.stride, plain.dilation, crop)
    has_bias = bool(weights) and "B" in (weights or ())
    return build(geometry, found, c_in=c_in, c_out=said.get("filters"), groups=groups, has_bias=has_bias)


def _crop(plain: Geometry, said: Parameters, more: tuple[int, ...], input_size: Ints | None) -> Crop:
    """What is cut: pads after, less the output padding."""
    auto = str(said.get("auto_pad") or "NOTSET").upper()
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ArgumentError("auto_pad", "NOTSET, VALID, SAME_UPPER or SAME_LOWER", repr(auto), "SAME_UPPER")
    rank, wanted = plain.rank, said.get("output_shape")
    if not wanted and not auto.startswith("SAME"):
        pads = tuple(said.get("pads") or (0,) * 2 * rank) if auto == "NOTSET" else (0,) * 2 * rank
        if len(pads) != 2 * rank or min(pads) < 0:
            raise ArgumentError("pads", f"{2 * rank} integers of at least 0", pads, f"pads={[1] * 2 * rank}")
        return tuple((pads[i], pads[rank + i] - more[i]) for i in range(rank))
    if wanted:
        if input_size is None:
            raise ArgumentError("input_size", "the size of X beside output_shape", None, "input_size=16")
        # old exporters wrote the batch and the channels too
        m = per_axis("output_shape", tuple(wanted)[-rank:], rank, least=1)
        full = plain.output_size(input_size)
        totals = [f + p - mi for f, p, mi in zip(full, more, m, strict=True)]
    else:
        totals = [e + p - s for e, p, s in zip(plain.extent, more, plain.stride, strict=True)]
    crop = []
    for total, p, s in zip(totals, more, plain.stride, strict=True):
        if total < 0 and (not wanted or total <= -s):
            name = "output_shape" if wanted else "auto_pad"
            expected = "nothing to add for SAME (engines disagree)"
            if wanted:
                expected = f"less than the stride {s} beyond all that the taps reach"
            raise ArgumentError(name, expected, f"{-total} to add", f"pads and output_padding={p - total}")
        begin = 0 if total < 0 else total // 2 if auto == "SAME_UPPER" else total - total // 2
        crop.append((begin, total - begin - p))
    return tuple(crop)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The attributes and the weights of a layer.

    Raises:
        RefusalError: for a negative crop before, or of ``max(stride, dilation)`` and more after, unless
            ``allow_crop``: then the Pad or Slice that has to follow stands in ``crop``.
    """
    g, left = layer.geometry, zero_crop(layer.rank)
    most = [max(s, d) for s, d in zip(g.stride, g.dilation, strict=True)]
    if any(lo < 0 or hi <= -p for (lo, hi), p in zip(g.crop, most, strict=True)):
        if not allow_crop:
            raise RefusalError(
                SYSTEM,
                "pads",
                "at least 0 before, and less than max(stride, dilation) added after",
                g.crop,
                f"a kernel of {layer.with_zero_taps().geometry.kernel} whose added taps are 0, or Pad and then Add",
            )
        inner = tuple(pair if pair[0] >= 0 and pair[1] > -p else (0, 0) for pair, p in zip(g.crop, most, strict=True))
        left = tuple((lo - a, hi - b) for (lo, hi), (a, b) in zip(g.crop, inner, strict=True))
        g = Geometry(g.kernel, g.stride, g.dilation, inner)
    parameters: dict[str, Any] = {
        "kernel_shape": list(g.kernel),
        "strides": list(g.stride),
        "dilations": list(g.dilation),
        "pads": [lo for lo, _ in g.crop] + [max(hi, 0) for _, hi in g.crop],
        "output_padding": [max(-hi, 0) for _, hi in g.crop],
        "group": layer.groups,
    }
    if layer.weight is None:
        parameters["filters"] = layer.c_out
    weights = {k: v for k, v in (("W", layer.weight), ("B", layer.bias)) if v is not None}
    return Written("onnx", parameters, weights, NORMAL, crop=left)


def code(layer: Layer) -> str:
    """The lines that build the model and run it with ONNX Runtime; ``x`` is ``(N, C, *size)``."""
    written = write(layer, allow_crop=True)
    p = {k: v for k, v in written.parameters.items() if k != "filters"}
    arguments = ", ".join(f"{k}={v!r}" for k, v in p.items())
    inside = layer.has_bias and written.is_one_layer
    inputs = ["x", "W", "B"] if inside else ["x", "W"]
    lines = [
        "import onnx, onnxruntime",
        "from onnx import helper, numpy_helper",
        "",
        'weights = [numpy_helper.from_array(weight, "W")]',
    ]
    out = "y" if written.is_one_layer else "full"
    lines.append(f'nodes = [helper.make_node("ConvTranspose", {inputs}, ["{out}"], {arguments})]')
    if inside:
        lines.append('weights.append(numpy_helper.from_array(bias, "B"))')
    if not written.is_one_layer:
        lines[1] = "import numpy as np\n" + lines[1]
        before = [0, 0, *[-lo for lo, _ in written.crop]]
        after = [0, 0, *[-hi for _, hi in written.crop]]
        padded = "padded" if layer.has_bias else "y"
        lines.append(f'weights.append(numpy_helper.from_array(np.array({before + after}), "P"))')
        lines.append(f'nodes.append(helper.make_node("Pad", ["full", "P"], ["{padded}"]))')
        if layer.has_bias:
            lines.append(f'weights.append(numpy_helper.from_array(bias.reshape{(1, -1, *[1] * layer.rank)}, "B"))')
            lines.append('nodes.append(helper.make_node("Add", ["padded", "B"], ["y"]))')
    axes = ["N", "C", *"DHW"[3 - layer.rank :]] if layer.rank <= 3 else [f"a{i}" for i in range(layer.rank + 2)]
    lines += [
        f'x_info = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, {axes})',
        'y_info = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)',
        'graph = helper.make_graph(nodes, "upscore", [x_info], [y_info], weights)',
        'model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)',
        'session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])',
        'y = session.run(None, {"x": x})[0]',
    ]
    return "\n".join(lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in ONNX Runtime, for ``x`` ``(N, C, *size)``."""
    require("onnx", "building an ONNX model", "onnx")
    require("onnxruntime", "running a layer in ONNX Runtime")
    y: Array = execute(code(layer), layer, np.ascontiguousarray(x))
    return y


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size in ONNX' names."""
    p = write(layer).parameters
    axes = plain_axes(layer, input_size)
    for i, axis in enumerate(axes):
        axis.update(pads_begin=p["pads"][i], pads_end=p["pads"][layer.rank + i], output_padding=p["output_padding"][i])
    return "stride*(n - 1) + output_padding + dilation*(kernel - 1) + 1 - pads_begin - pads_end", axes


def plane_switches(indices: Array, size: Ints) -> Array:
    """ONNX' indices, which count through the whole pooled tensor, as indices within each channel's plane.

    Planes are what PyTorch and Caffe count in. ``size`` is the spatial size that was pooled.

    >>> plane_switches(np.array([[[[5]], [[16 + 7]]]]), (4, 4)).ravel()
    array([5, 7])
    """
    rank = np.ndim(indices) - 2
    plane = int(np.prod(per_axis("size", size, rank, least=1)))
    within: Array = np.asarray(indices) % plane
    return within


def tensor_switches(switches: Array, size: Ints) -> Array:
    """Indices within each plane as ONNX counts them, through the whole tensor ``(N, C, *size)``."""
    switches = np.asarray(switches)
    n, c = switches.shape[:2]
    plane = int(np.prod(per_axis("size", size, switches.ndim - 2, least=1)))
    first = np.arange(n * c).reshape(n, c, *[1] * (switches.ndim - 2)) * plane
    counted: Array = switches.astype(np.int64) + first
    return counted


def unpool(x: Array, indices: Array, parameters: Parameters, output_shape: Ints | None = None) -> Array:
    """``MaxUnpool``: every value of ``x`` where its index says, zeros elsewhere.

    Args:
        x: ``(N, C, *size)``.
        indices: of the shape of ``x``, counting through the pooled tensor (see :func:`plane_switches`).
        parameters: ``kernel_shape``, ``strides`` and ``pads``: the pooled size is ``s(n - 1) + k - pads``.
        output_shape: ``(N, C, *size)``; a larger one is filled with zeros behind, as the node tests of ONNX have it.

    Raises:
        ArgumentError: for an index outside the pooled tensor, or a smaller ``output_shape``.

    >>> unpool(np.array([[[5.0, 7.0]]]), np.array([[[1, 2]]]), {"kernel_shape": [2], "strides": [2]})
    array([[[0., 5., 7., 0.]]])
    """
    check("MaxUnpool", parameters, {"kernel_shape", "strides", "pads"})
    x, indices = np.asarray(x), np.asarray(indices)
    rank = x.ndim - 2
    kernel = per_axis("kernel_shape", parameters["kernel_shape"], rank, least=1)
    stride = per_axis("strides", parameters.get("strides") or 1, rank, least=1)
    pads = tuple(parameters.get("pads") or (0,) * 2 * rank)
    sides = tuple(zip(pads[:rank], pads[rank:], strict=True))
    pooled = (*x.shape[:2], *Geometry(kernel, stride, 1, sides, rank=rank).output_size(x.shape[2:]))
    flat = np.zeros(int(np.prod(pooled)), x.dtype)
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < flat.size:
        expected = f"positions in the pooled tensor {pooled}, at least 0 and below {flat.size}"
        raise ArgumentError("indices", expected, f"{indices.min()} to {indices.max()}", "the second output of MaxPool")
    flat[indices.ravel()] = x.ravel()
    y: Array = flat.reshape(pooled)
    if output_shape is None:
        return y
    wanted = per_axis("output_shape", output_shape, x.ndim, least=1)
    more = [(0, w - m) for w, m in zip(wanted, pooled, strict=True)]
    if min(after for _, after in more) < 0:
        raise ArgumentError("output_shape", f"at least {pooled} on every axis", wanted, f"output_shape={pooled}")
    return np.pad(y, more)
