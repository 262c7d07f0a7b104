"""The pieces of Python that the dialects' ``code`` is made of, and running such code as proof.

Every snippet takes ``x`` (in the framework's own order of axes), ``weight`` and ``bias`` (NumPy, in the normal
layout) and leaves its result in ``y``.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.translation import Crop
from upscore.errors import ArgumentError, MissingDependencyError

__all__ = ["after", "call", "channels_first", "channels_last", "execute", "needs_pad", "require"]


def call(function: str, **arguments: object) -> str:
    """A call written out, leaving away what is None."""
    return f"{function}({', '.join(f'{k}={v!r}' for k, v in arguments.items() if v is not None)})"


def needs_pad(crop: Crop) -> bool:
    """Whether positions have to be added, so that the bias has to come after them."""
    return any(amount < 0 for pair in crop for amount in pair)


def after(crop: Crop, *, channels: str, pad: str, bias: str | None) -> list[str]:
    """The lines that cut or pad ``y`` behind a layer, and add the bias where it has to come last.

    Args:
        crop: what is left to cut (positive) or add (negative), before and after, per axis.
        channels: "first" or "last".
        pad: the framework's function, called as ``pad(y, [(before, after), ...])`` over all axes.
        bias: an expression that broadcasts over ``y``, or None.
    """
    lines = []
    if any(amount > 0 for pair in crop for amount in pair):
        cuts = [f"{max(lo, 0) or ''}:{-hi if hi > 0 else ''}" for lo, hi in crop]
        index = [":", ":", *cuts] if channels == "first" else [":", *cuts, ":"]
        lines.append(f"y = y[{', '.join(index)}]")
    if needs_pad(crop):
        amounts = [(max(-lo, 0), max(-hi, 0)) for lo, hi in crop]
        every = [(0, 0), (0, 0), *amounts] if channels == "first" else [(0, 0), *amounts, (0, 0)]
        lines.append(f"y = {pad}(y, {every})")
        if bias is not None:
            lines.append(f"y = y + {bias}  # after the padding: positions no tap reaches hold the bias")
    return lines


def require(package: str, what: str, extra: str = "oracles") -> Any:
    """The imported package, or the error that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(package, what, extra) from error


def execute(text: str, layer: Layer, x: Any) -> Any:
    """What a snippet leaves in ``y``."""
    if layer.weight is None:
        raise ArgumentError("layer", "a layer with its weights", "none", "layer.filled()")
    names: dict[str, Any] = {"x": x, "weight": np.array(layer.weight), "bias": None}
    if layer.has_bias:
        names["bias"] = np.array(layer.bias)
    exec(compile(text, "<code>", "exec"), names)  # our own text: numbers and names only
    return names["y"]


def channels_last(x: Array) -> Array:
    """``(N, C, *size)`` as ``(N, *size, C)``."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def channels_first(x: Array) -> Array:
    """``(N, *size, C)`` as ``(N, C, *size)``."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))
