"""Where in the input an output lies."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from upscore.geometry import Geometry

__all__ = ["Coordinates", "coordinates"]


@dataclass(frozen=True)
class Coordinates:
    """One axis: ``input = scale * output + offset``, exactly."""

    scale: Fraction
    offset: Fraction
    aligned: bool
    """Output pixel ``y`` lies where resizing by the stride puts it (pixels as areas): ``(y + 1/2)/s - 1/2``."""

    @property
    def formula(self) -> str:
        """The map in symbols.

        >>> coordinates(Geometry(4, 2, crop=1))[0].formula
        'x = 1/2*y - 1/4'
        """
        sign = "-" if self.offset < 0 else "+"
        scaled = "y" if self.scale == 1 else f"{self.scale}*y"
        return f"x = {scaled} {sign} {abs(self.offset)}" if self.offset else f"x = {scaled}"


def coordinates(geometry: Geometry) -> tuple[Coordinates, ...]:
    """The map of every axis (`Geometry.coordinate_map`)."""
    mapped = geometry.coordinate_map()
    return tuple(
        Coordinates(scale, offset, offset == scale / 2 - Fraction(1, 2))
        for scale, offset in zip(mapped.scale, mapped.offset, strict=True)
    )
