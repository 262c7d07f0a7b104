"""The size formula of one axis with its numbers filled in."""

from __future__ import annotations

from dataclasses import dataclass

from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["FORMULA", "Size", "sizes"]

FORMULA = "(n - 1)*s + d*(k - 1) + 1 - lo - hi"


@dataclass(frozen=True)
class Size:
    """One axis: the input size ``n``, the output size ``m`` and what leads from one to the other."""

    input: int
    output: int
    filled_in: str
    back: int
    """The size that the adjoint convolution makes of the output: the input again."""


def sizes(geometry: Geometry, input: Ints) -> tuple[Size, ...]:  # noqa: A002
    """The sizes of every axis; raises ArgumentError as `Geometry.output_size` does.

    >>> sizes(Geometry(3, 2, crop=((0, 1),)), 2)[0].filled_in
    '(2 - 1)*2 + 1*(3 - 1) + 1 - 0 - 1 = 4'
    """
    n = per_axis("input", input, geometry.rank, least=1)
    m = geometry.output_size(n)
    back = geometry.adjoint_size(m)
    found = []
    for axis, (k, s, d, (lo, hi)) in enumerate(
        zip(geometry.kernel, geometry.stride, geometry.dilation, geometry.crop, strict=True)
    ):
        filled_in = f"({n[axis]} - 1)*{s} + {d}*({k} - 1) + 1 {_minus(lo)} {_minus(hi)} = {m[axis]}"
        found.append(Size(n[axis], m[axis], filled_in, back[axis]))
    return tuple(found)


def _minus(number: int) -> str:
    return f"- {number}" if number >= 0 else f"+ {-number}"
