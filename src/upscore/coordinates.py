"""Which input coordinate lies under an output one, through any number of layers. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from upscore.errors import ArgumentError

__all__ = ["CoordinateMap"]


@dataclass(frozen=True)
class CoordinateMap:
    """The affine map ``input = scale * output + offset``, one scale and offset per axis.

    It says which input coordinate lies under the centre of an output position. Maps of layers that
    follow each other combine with ``then``; the constant left over between two paths of a network is
    the offset at which to crop (Long, Shelhamer, Darrell 2015; Caffe's ``coord_map.py``).
    """

    scale: tuple[Fraction, ...]
    offset: tuple[Fraction, ...]

    @classmethod
    def identity(cls, rank: int) -> CoordinateMap:
        return cls((Fraction(1),) * rank, (Fraction(0),) * rank)

    def __call__(self, output: Sequence[int | Fraction]) -> tuple[Fraction, ...]:
        """The input coordinate under the output coordinate."""
        return tuple(a * y + b for a, b, y in zip(self.scale, self.offset, output, strict=True))

    def inverse(self) -> CoordinateMap:
        """The map of the adjoint layer: which output coordinate lies over an input one."""
        scale = tuple(1 / a for a in self.scale)
        return CoordinateMap(scale, tuple(-b / a for a, b in zip(self.scale, self.offset, strict=True)))

    def then(self, later: CoordinateMap) -> CoordinateMap:
        """The map from the output of ``later`` to the input of ``self``, ``later`` being fed by ``self``."""
        scale = tuple(a * c for a, c in zip(self.scale, later.scale, strict=True))
        return CoordinateMap(scale, self(later.offset))

    def crop_offset(self, reference: CoordinateMap) -> tuple[Fraction, ...]:
        """Where in this path's output the origin of ``reference``'s output lies.

        Both maps lead to the same input. Raises ArgumentError when the two scales differ, because then
        no crop aligns them. A fraction means that whole-pixel cropping cannot align the paths exactly.
        """
        if self.scale != reference.scale:
            raise ArgumentError(
                "reference",
                f"a path with the same scale {_show(self.scale)}",
                _show(reference.scale),
                "a path whose strides multiply to the same number",
            )
        return tuple((r - b) / a for a, b, r in zip(self.scale, self.offset, reference.offset, strict=True))


def _show(values: Iterable[Fraction]) -> str:
    return "(" + ", ".join(str(v) for v in values) + ")"
