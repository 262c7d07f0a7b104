"""How many inputs lie under an output."""

from __future__ import annotations

from dataclasses import dataclass

from upscore.geometry import Geometry

__all__ = ["Overlap", "overlap"]


@dataclass(frozen=True)
class Overlap:
    """One axis, away from the borders. On several axes the numbers multiply."""

    counts: tuple[int, ...]
    """By phase: how many inputs (and so how many taps) make one output."""
    holes: int
    """Phases that no tap reaches: these outputs hold the bias alone."""
    receptive_field: int
    """The widest span of inputs that one output sees."""

    @property
    def even(self) -> bool:
        """Every phase has the same number of taps."""
        return len(set(self.counts)) == 1


def overlap(geometry: Geometry) -> tuple[Overlap, ...]:
    """The overlap of every axis.

    >>> overlap(Geometry(3, 2))
    (Overlap(counts=(2, 1), holes=0, receptive_field=2),)
    """
    return tuple(
        Overlap(counts, counts.count(0), field)
        for counts, field in zip(geometry.overlap(), geometry.receptive_field(), strict=True)
    )
