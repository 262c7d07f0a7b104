"""A small case worked out by all four definitions, in numbers and in letters.

The inputs are called ``a, b, c, ...`` and the weights ``w1, w2, ...``, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from upscore import reference
from upscore.errors import ArgumentError
from upscore.geometry import Geometry

__all__ = ["Definitions", "definitions", "fits"]

MOST_INPUTS, MOST_WEIGHTS, MOST_OUTPUTS, LONGEST_AXIS = 9, 25, 64, 12
Nested = list[Any]
"""Lists within lists, one level per spatial axis."""


@dataclass(frozen=True)
class Definitions:
    """What goes in, what comes out, and the picture behind each definition, all as nested lists."""

    input: Nested
    input_letters: Nested
    weights: Nested
    weight_letters: Nested
    stamps: tuple[Nested, ...]
    """Scatter: for each input its stamp in the output, in letters, '' elsewhere. Their sum is the output."""
    stuffed: Nested
    """Zero-stuffing: the input with zeros between (and around, less the crop), in letters."""
    flipped: Nested
    """Zero-stuffing: the flipped (and, if dilated, spread) kernel that slides over it, in letters."""
    matrix: Nested
    """Matrix: ``C^T`` in letters, one row per output and one column per input, '' for zero."""
    phase_kernels: tuple[Nested, ...]
    """Phases: the weights of each phase, in letters."""
    phase_outputs: Nested
    """Phases: which phase (counted from 1) makes each output."""
    output: Nested
    output_letters: Nested
    disagreement: float
    """The largest difference between the outputs of the four definitions."""


def fits(geometry: Geometry, size: Sequence[int]) -> bool:
    """The case is small enough to be shown: one or two axes and a handful of inputs, weights and outputs."""
    return (
        geometry.rank <= 2
        and math.prod(size) <= MOST_INPUTS
        and math.prod(geometry.kernel) <= MOST_WEIGHTS
        and math.prod(geometry.output_size(size)) <= MOST_OUTPUTS
        and max(*geometry.output_size(size), *geometry.extent) <= LONGEST_AXIS
    )


def definitions(
    geometry: Geometry,
    input: npt.ArrayLike,  # noqa: A002
    weights: npt.ArrayLike | None = None,
) -> Definitions:
    """Work out one channel: ``input`` and ``weights`` are arrays over the spatial axes (weights of ones if None).

    >>> definitions(Geometry((3, 3), 2), [[1, 2], [3, 4]]).output_letters[2]
    ['a*w7+c*w1', 'a*w8+c*w2', 'a*w9+b*w7+c*w3+d*w1', 'b*w8+d*w2', 'b*w9+d*w3']

    Raises:
        ArgumentError: shapes that do not fit, or a case too large to show (see `fits`).
    """
    x = np.asarray(input, np.float64)
    w = np.ones(geometry.kernel) if weights is None else np.asarray(weights, np.float64)
    if x.ndim != geometry.rank:
        raise ArgumentError(
            "input", f"an array of {geometry.rank} axes", f"shape {x.shape}", f"shape {(2,) * geometry.rank}"
        )
    if w.shape != geometry.kernel:
        raise ArgumentError("weights", f"shape {geometry.kernel}", f"shape {w.shape}", "weights=None, for ones")
    if not fits(geometry, x.shape):
        most = (
            f"at most {MOST_INPUTS} inputs, {MOST_WEIGHTS} weights and {MOST_OUTPUTS} outputs "
            f"on 1 or 2 axes, none longer than {LONGEST_AXIS}"
        )
        raise ArgumentError("input", most, f"{x.shape} with kernel {geometry.kernel}", "2 x 2 with kernel 3")
    four = (reference.scatter, reference.zero_stuffing, reference.matrix, reference.phases)
    outputs = [definition(x[None, None], w[None, None], geometry=geometry)[0, 0] for definition in four]
    letters = np.array([chr(ord("a") + i) for i in range(x.size)], object).reshape(x.shape)
    names = np.array([f"w{t + 1}" for t in range(w.size)], object).reshape(w.shape)
    matrix = _transposed(geometry, x.shape, names)
    terms = [[f"{a}*{v}" if v else "" for a, v in zip(letters.ravel(), row, strict=True)] for row in matrix]
    size = geometry.output_size(x.shape)
    stuffed, flipped = _stuffing(geometry, letters, names)
    return Definitions(
        input=x.tolist(),
        input_letters=letters.tolist(),
        weights=w.tolist(),
        weight_letters=names.tolist(),
        stamps=tuple(_shaped(column, size) for column in zip(*terms, strict=True)),
        stuffed=stuffed,
        flipped=flipped,
        matrix=matrix,
        phase_kernels=tuple(names[np.ix_(*phase.taps)].tolist() for phase in geometry.phases()),
        phase_outputs=_phase_numbers(geometry, size),
        output=outputs[0].tolist(),
        output_letters=_shaped(["+".join(filter(None, row)) or "0" for row in terms], size),
        disagreement=float(max(np.abs(y - outputs[0]).max() for y in outputs)),
    )


def _transposed(geometry: Geometry, size: Sequence[int], names: npt.NDArray[np.object_]) -> list[list[str]]:
    """``C^T`` in letters: the matrix of a kernel that counts its taps, read back as names."""
    counting = np.arange(1.0, names.size + 1).reshape(1, 1, *names.shape)
    numbers = reference.convolution_matrix(counting, size, geometry=geometry).T.dense().astype(int)
    return [[names.flat[v - 1] if v else "" for v in row] for row in numbers.tolist()]


def _stuffing(
    geometry: Geometry, letters: npt.NDArray[np.object_], names: npt.NDArray[np.object_]
) -> tuple[Nested, Nested]:
    sizes = [m + e - 1 for m, e in zip(geometry.output_size(letters.shape), geometry.extent, strict=True)]
    stuffed = np.full(sizes, "0", object)
    for index in np.ndindex(*letters.shape):
        axes = zip(index, geometry.stride, geometry.extent, geometry.crop, strict=True)
        at = tuple(i * s + e - 1 - lo for i, s, e, (lo, _) in axes)
        if all(0 <= p < n for p, n in zip(at, sizes, strict=True)):
            stuffed[at] = letters[index]
    flipped = np.full(geometry.extent, "0", object)
    flipped[tuple(slice(None, None, d) for d in geometry.dilation)] = np.flip(names)
    return stuffed.tolist(), flipped.tolist()


def _phase_numbers(geometry: Geometry, size: Sequence[int]) -> Nested:
    axes = zip(np.indices(size), geometry.stride, geometry.crop, strict=True)
    residues = tuple((y + lo) % s for y, s, (lo, _) in axes)
    numbers: Nested = (np.ravel_multi_index(residues, geometry.stride) + 1).tolist()
    return numbers


def _shaped(flat: Sequence[str], size: Sequence[int]) -> Nested:
    shaped: Nested = np.array(flat, object).reshape(size).tolist()
    return shaped
