"""The notation of signal processing: ``*`` convolves, ``up_s`` inserts ``s - 1`` zeros, ``down_s`` keeps every s-th.

Three operations with one kernel ``q``::

    q * (up_s x)      the transposed convolution with stride s: taps are the impulse response, not flipped
    (up_d q) * x      the convolution with dilation d (and its own transpose, with the taps flipped)
    down_s (q * x)    the convolution with stride s; with the flipped kernel the transpose of the first

so ``q * (up_s x) = (down_s (q~ * .))^T x`` with ``q~`` the flipped ``q``: :func:`matrices` shows it. ``mode`` is that
of ``scipy.signal.convolve``: "full" keeps all, "same" the middle as long as ``up_s x``, "valid" the overlap alone.

Sources: M. Vetterli, J. Kovacevic, V. Goyal, "Foundations of Signal Processing", ch. 3 (multirate sequences);
scipy.signal.convolve and scipy.signal.upfirdn documentation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from upscore.dialects.layer import Array, Layer
from upscore.dialects.layout import NORMAL
from upscore.dialects.snippet import execute, require
from upscore.dialects.translation import (
    Parameters,
    Terms,
    Weights,
    Written,
    build,
    check,
    find_rank,
    plain_axes,
    take_weights,
)
from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, pairs, per_axis

__all__ = ["code", "formula", "matrices", "read", "run", "show_matrices", "write"]

SYSTEM = "signal processing"
_KNOWN = {"up", "dilation", "mode", "crop", "taps", "channels", "groups"}


def read(
    parameters: Parameters,
    weights: Weights | None = None,
    *,
    c_in: int | None = None,
    rank: int | None = None,
    input_size: Ints | None = None,
) -> Layer:
    """``(up_d q) * (up_s x)`` in the normal form, for a bank of filters ``q``.

    Args:
        parameters: ``up`` (s), ``dilation`` (d), ``mode``, or ``crop`` for amounts of your own; ``taps`` and
            ``channels`` (of the output) where there are no weights; ``groups``.
        weights: ``q`` ``(C_in, C_out / groups, *taps)``, or ``(*taps)`` for one channel; ``offset`` ``(C_out,)``.
        c_in: channels of the input, where no weights say it.
        rank: axes; from ``up`` or ``q`` (with channels), else 1.
        input_size: not needed here; the same in every dialect.

    Raises:
        ArgumentError: naming the parameter.

    >>> read({"up": 3, "mode": "same", "taps": 5, "channels": 1}, c_in=1).geometry.crop
    ((2, 2),)
    """
    check(SYSTEM, parameters, _KNOWN)
    groups = int(parameters.get("groups", 1))
    if weights and "q" in weights:
        q = np.asarray(weights["q"])
        up = parameters.get("up", 1)
        if q.ndim == (len(up) if isinstance(up, (list, tuple)) else 1):
            weights = {**weights, "q": q[None, None]}
    rank = rank or find_rank(parameters, weights, "q", default=1)
    found = take_weights(weights, ("q", "offset"), NORMAL, groups)
    taps: Any = parameters.get("taps") if found[0] is None else found[0].shape[2:]
    if taps is None:
        raise ArgumentError("taps", "how many, where no q is given", None, "taps=4")
    plain = Geometry(
        per_axis("taps", taps, rank, least=1),
        per_axis("up", parameters.get("up", 1), rank, least=1),
        per_axis("dilation", parameters.get("dilation", 1), rank, least=1),
        rank=rank,
    )
    if "crop" in parameters and "mode" in parameters:
        raise ArgumentError("mode", "none beside crop", parameters["mode"], "mode='full'")
    mode = parameters.get("mode", "full")
    if mode not in ("full", "same", "valid"):
        raise ArgumentError("mode", "'full', 'same' or 'valid'", repr(mode), "mode='full'")
    cut = {
        "full": [(0, 0) for _ in plain.extent],
        "same": [((e - 1) // 2, e // 2) for e in plain.extent],
        "valid": [(e - 1, e - 1) for e in plain.extent],
    }[mode]
    crop = pairs("crop", parameters["crop"], rank) if "crop" in parameters else tuple(cut)
    geometry = Geometry(plain.kernel, plain.stride, plain.dilation, crop)
    return build(geometry, found, c_in=c_in, c_out=parameters.get("channels"), groups=groups, has_bias=False)


def write(layer: Layer, *, input_size: Ints | None = None, allow_crop: bool = False) -> Written:
    """``up``, ``dilation``, ``crop`` and the filters ``q`` of a layer. Nothing is refused."""
    g = layer.geometry
    parameters: dict[str, Any] = {"up": g.stride, "dilation": g.dilation, "crop": g.crop, "groups": layer.groups}
    if layer.weight is None:
        parameters |= {"taps": g.kernel, "channels": layer.c_out}
    weights = {k: v for k, v in (("q", layer.weight), ("offset", layer.bias)) if v is not None}
    return Written("signal", parameters, weights, NORMAL)


def code(layer: Layer) -> str:
    """The lines with SciPy's convolution; ``x`` is ``(N, C, *size)``."""
    g = layer.geometry
    every = ", ".join(f"::{s}" for s in g.stride)
    between = ", ".join(f"::{d}" for d in g.dilation)
    cuts = ", ".join(f"{max(lo, 0)}:size[{i}] - {max(hi, 0)}" for i, (lo, hi) in enumerate(g.crop))
    o = layer.c_out // layer.groups
    lines = [
        "import numpy as np",
        "from scipy.signal import convolve",
        "",
        f"spread = np.zeros((*x.shape[:2], *[(n - 1) * s + 1 for n, s in zip(x.shape[2:], {g.stride})]), x.dtype)",
        f"spread[:, :, {every}] = x  # up_s x",
        f"taps = np.zeros((*weight.shape[:2], *{g.extent}), weight.dtype)",
        f"taps[:, :, {between}] = weight  # up_d q",
        f"size = [a + e - 1 for a, e in zip(spread.shape[2:], {g.extent})]",
        f"y = np.zeros((len(x), {layer.c_out}, *size), np.result_type(x, weight))",
        "for image, out in zip(spread, y):",
        "    for i, channel in enumerate(image):",
        f"        for j in range({o}):",
        f"            o = i // {layer.c_in // layer.groups} * {o} + j",
        '            out[o] += convolve(channel, taps[i, j], mode="full", method="direct")',
        f"y = y[:, :, {cuts}]",
    ]
    if any(amount < 0 for pair in g.crop for amount in pair):
        lines.append(f"y = np.pad(y, {[(0, 0), (0, 0), *[(max(-lo, 0), max(-hi, 0)) for lo, hi in g.crop]]})")
    if layer.has_bias:
        lines.append(f"y = y + bias.reshape{(1, -1, *[1] * layer.rank)}")
    return "\n".join(lines) + "\n"


def run(layer: Layer, x: Array) -> Array:
    """The output of ``code(layer)``, for ``x`` ``(N, C, *size)``."""
    require("scipy", "running a layer with SciPy", "test")
    return np.asarray(execute(code(layer), layer, np.asarray(x)))


def formula(layer: Layer, input_size: Ints) -> Terms:
    """The output size: lengths add, less one, less what is cut."""
    axes = plain_axes(layer, input_size)
    for axis in axes:
        axis.update(s=axis["stride"], d=axis["dilation"], taps=axis["kernel"])
    return "((n - 1)*s + 1) + ((taps - 1)*d + 1) - 1 - before - after", axes


def matrices(
    q: Array, size: int, *, up: int = 1, dilation: int = 1, crop: tuple[int, int] = (0, 0)
) -> dict[str, Array]:
    """The matrices of one axis and one channel: ``whole = cut @ filter @ up``.

    Args:
        q: the taps.
        size: length of the input.
        up: s.
        dilation: d.
        crop: cut before and after.

    Returns:
        ``up`` (spreads the input), ``filter`` (the Toeplitz matrix of ``up_d q``), ``cut``, and ``whole``, which is
        the transpose of the strided convolution's ``down @ filter(q~)`` matrix.

    >>> matrices(np.array([1, 2, 3]), 2, up=2)["whole"]
    array([[1, 0],
           [2, 0],
           [3, 1],
           [0, 2],
           [0, 3]])
    """
    q = np.asarray(q)
    geometry = Geometry(len(q), up, dilation, (crop,))
    spread = np.zeros(((size - 1) * up + 1, size), q.dtype)
    spread[np.arange(size) * up, np.arange(size)] = 1
    long = np.zeros(geometry.extent[0], q.dtype)
    long[::dilation] = q
    toeplitz = np.zeros((len(spread) + len(long) - 1, len(spread)), q.dtype)
    for column in range(len(spread)):
        toeplitz[column : column + len(long), column] = long
    (m,) = geometry.output_size(size)
    cut = np.zeros((m, len(toeplitz)), q.dtype)
    for row in range(m):
        if 0 <= row + crop[0] < len(toeplitz):
            cut[row, row + crop[0]] = 1
    return {"up": spread, "filter": toeplitz, "cut": cut, "whole": cut @ toeplitz @ spread}


def show_matrices(q: Array, size: int, *, up: int = 1, dilation: int = 1, crop: tuple[int, int] = (0, 0)) -> str:
    """The three operations with one kernel as matrices, written out.

    >>> print(show_matrices(np.array([1, 2]), 2, up=2).splitlines()[0])
    q * (up_2 x) =
    """
    whole = matrices(q, size, up=up, dilation=dilation, crop=crop)["whole"]
    (m,) = Geometry(len(q), up, dilation, (crop,)).output_size(size)
    dilated = matrices(q, m, dilation=dilation)["whole"]
    name = f"(up_{dilation} q)" if dilation > 1 else "q"
    blocks = [
        (f"{name} * (up_{up} x) =", whole),
        (f"its transpose, down_{up} ({name}~ * y) =", whole.T),
        (f"{name} * y =", dilated),
    ]
    width = max(len(f"{v:g}") for v in np.ravel(whole)) if whole.size else 1
    text = []
    for title, matrix in blocks:
        rows = [" ".join(f"{v:g}".rjust(width) if v else ".".rjust(width) for v in row) for row in matrix]
        text.append("\n".join([title, *(f"  [ {row} ]" for row in rows)]))
    return "\n\n".join(text)
