"""TensorFlow Lite's ``TRANSPOSE_CONV``: 2-D, padding SAME or VALID, the output's shape as an input.

As in TensorFlow the padding is that of the convolution the other way (see :mod:`upscore.dialects.tensorflow`):
SAME cuts the smaller half before, VALID nothing before. Weights are ``(C_out, kh, kw, C_in)``, not flipped. There is
no dilation and there are no groups. The interpreter does not check that the output's shape leads back to the
input; ``read`` does.

Source: tensorflow/lite/kernels/transpose_conv.cc and the TransposeConvOptions of schema.fbs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from upscore.dialects import tensorflow
from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import Layout
from upscore.dialects.snippet import channels_first, channels_last, execute, require
from upscore.dialects.translation import (
    Parameters,
    RefusalError,
    Terms,
    Weights,
    Written,
    check,
    refuse_dilation,
    refuse_groups,
    refuse_rank,
    say_crop,
    zero_crop,
)
from upscore.errors import ArgumentError
from upscore.geometry import Ints

__all__ = ["LAYOUT", "code", "formula", "read", "run", "write"]

SYSTEM = "TFLite"
LAYOUT = Layout("oki")
_KNOWN = {"output_shape", "padding", "stride_h", "stride_w", "weights_shape"}


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """A ``TRANSPOSE_CONV`` in the normal form.

    Args:
        parameters: ``output_shape`` ``(N, H, W, C)``, ``padding``, ``stride_h``, ``stride_w``; ``weights_shape``
            where there are no weights.
        weights: ``weights`` ``(C_out, kh, kw, C_in)`` and ``bias`` ``(C_out,)``.
        c_in: not needed: the weights say it.
        rank: 2.
        input_size: of the input; by default the one size that fits.

    Raises:
        ArgumentError: for an ``output_shape`` that does not lead back to the input.

    >>> said = {"output_shape": [1, 9, 9, 4], "stride_h": 2, "stride_w": 2, "weights_shape": [4, 3, 3, 8]}
    >>> read(said, input_size=5).geometry.crop
    ((1, 1), (1, 1))
    """
    check(SYSTEM, parameters, _KNOWN)
    shape = np.shape(weights["weights"]) if weights and "weights" in weights else parameters.get("weights_shape")
    if shape is None or len(shape) != 4:
        raise ArgumentError("weights_shape", "(C_out, kh, kw, C_in), where no weights are given", shape, "[4, 3, 3, 8]")
    padding = parameters.get("padding", "SAME")
    if padding not in ("SAME", "VALID"):
        raise ArgumentError("padding", "'SAME' or 'VALID'", repr(padding), "padding='SAME'")
    said = {
        "output_shape": parameters.get("output_shape"),
        "padding": padding,
        "strides": [parameters.get("stride_h", 1), parameters.get("stride_w", 1)],
        "filters_shape": [shape[1], shape[2], shape[0], shape[3]],
    }
    if said["output_shape"] is None:
        raise ArgumentError("output_shape", "the output's shape", None, "output_shape=[1, 32, 32, 4]")
    filters = None
    if weights:
        filters = {"filters": tensorflow.LAYOUT.write(LAYOUT.read(weights["weights"]))}
        filters |= {"bias": weights["bias"]} if "bias" in weights else {}
    return tensorflow.read(said, filters, input_size=input_size)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """The options and the weights of a layer for one input size (the smallest that works, if none is given).

    Raises:
        RefusalError: for another rank than 2, groups, dilation, or a crop that neither padding says, unless
            ``allow_crop``: then VALID makes everything and ``crop`` has to follow.
    """
    refuse_rank(SYSTEM, layer, (2,), "a height of 1 for one axis; CONV_3D_TRANSPOSE for three")
    refuse_groups(SYSTEM, layer)
    refuse_dilation(SYSTEM, layer)
    g, said = layer.geometry, _as_tensorflow(layer, input_size)
    if not said.is_one_layer and not allow_crop:
        raise RefusalError(
            SYSTEM,
            "padding",
            "a crop of SAME (extra position after) or of VALID (none)",
            g.crop,
            f"padding='VALID' with everything kept, then {say_crop(g.crop)}",
        )
    p: dict[str, Any] = said.parameters
    parameters = {
        "output_shape": p["output_shape"],
        "padding": p["padding"],
        "stride_h": g.stride[0],
        "stride_w": g.stride[1],
        "weights_shape": [layer.c_out, *g.kernel, layer.c_in],
    }
    weights = {}
    if layer.weight is not None:
        weights["weights"] = LAYOUT.write(layer.weight)
    if layer.bias is not None:
        weights["bias"] = layer.bias
    return Written("tflite", parameters, weights, LAYOUT, said.input_size, said.crop)


def _as_tensorflow(layer: Layer, input_size: Ints | None) -> Written:
    """The layer as TensorFlow says it without explicit padding, which TRANSPOSE_CONV has not."""
    said = tensorflow.write(layer, input_size=input_size, allow_crop=True)
    if said.parameters["padding"] in ("SAME", "VALID"):
        return said
    everything = tensorflow.write(layer.with_crop(zero_crop(2)), input_size=said.input_size)
    return replace(everything, crop=layer.geometry.crop)


def code(layer: Layer) -> str:
    """The lines that convert and run the layer for the size of ``x`` ``(N, H, W, C)``; TFLite fixes sizes."""
    write(layer, allow_crop=True)
    body = [line.replace("tf.shape(x)", "x.shape") for line in tensorflow.lines_of(layer, _as_tensorflow(layer, None))]
    lines = [
        "import tensorflow as tf",
        "",
        "@tf.function(input_signature=[tf.TensorSpec(x.shape, tf.float32)], autograph=False)",
        "def layer(x):",
        *[f"    {line}" for line in body],
        "    return y",
        "",
        "function = layer.get_concrete_function()",
        "model = tf.lite.TFLiteConverter.from_concrete_functions([function], layer).convert()",
        "interpreter = tf.lite.Interpreter(model_content=model)",
        "interpreter.allocate_tensors()",
        'interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)',
        "interpreter.invoke()",
        'y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])',
    ]
    return "\n".join(lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)`` in TFLite's interpreter, for ``x`` ``(N, C, H, W)``."""
    require("tensorflow", "running a layer in TFLite")
    return channels_first(execute(code(layer), layer, channels_last(np.asarray(x, np.float32))))


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size: chosen in ``output_shape``, as in TensorFlow."""
    write(layer, input_size=input_size)
    return tensorflow.formula(layer, input_size)
