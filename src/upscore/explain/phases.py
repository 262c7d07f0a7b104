"""Which weights make which output."""

from __future__ import annotations

from dataclasses import dataclass

from upscore.geometry import Geometry

__all__ = ["PhaseRow", "phases"]


@dataclass(frozen=True)
class PhaseRow:
    """One phase of one axis: the outputs ``first``, ``first + stride``, ... and the taps they use."""

    residue: int
    stride: int
    first: int
    """The first output position of the phase, counted after cropping."""
    taps: tuple[int, ...]
    inputs: tuple[int, ...]
    """At output ``first + i*stride`` tap ``taps[j]`` meets input ``i + inputs[j]``, where there is such an input."""

    @property
    def formula(self) -> str:
        """The phase as the stride-1 convolution it is.

        >>> phases(Geometry(4, 2, crop=1))[0][1].formula
        'y[2i] = x[i]*w[1] + x[i-1]*w[3]'
        """
        terms = [f"x[{_index('i', x)}]*w[{tap}]" for tap, x in zip(self.taps, self.inputs, strict=True)]
        step = "i" if self.stride == 1 else f"{self.stride}i"
        return f"y[{_index(step, self.first)}] = {' + '.join(terms) or '0 (no tap)'}"


def phases(geometry: Geometry) -> tuple[tuple[PhaseRow, ...], ...]:
    """The phases of every axis, by residue.

    >>> [row.taps for row in phases(Geometry(5, 3))[0]]
    [(0, 3), (1, 4), (2,)]
    """
    return tuple(tuple(_rows(geometry, axis)) for axis in range(geometry.rank))


def _rows(geometry: Geometry, axis: int) -> list[PhaseRow]:
    stride, lo = geometry.stride[axis], geometry.crop[axis][0]
    rows = []
    for phase in geometry.axis_phases(axis):
        first = (phase.residue[0] - lo) % stride
        q = (first + lo) // stride
        inputs = tuple(q - shift for shift in phase.shifts[0])
        rows.append(PhaseRow(phase.residue[0], stride, first, phase.taps[0], inputs))
    return rows


def _index(name: str, offset: int) -> str:
    return name if offset == 0 else f"{name}{offset:+d}"
