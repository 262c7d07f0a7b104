"""Everything there is to say about a layer, collected."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from upscore.errors import ArgumentError
from upscore.explain.checkerboard import Checkerboard, checkerboard
from upscore.explain.coordinates import Coordinates, coordinates
from upscore.explain.definitions import Definitions, definitions, fits
from upscore.explain.engine import Run, run
from upscore.explain.kernel import KernelChoice, kernel_choice
from upscore.explain.overlap import Overlap, overlap
from upscore.explain.phases import PhaseRow, phases
from upscore.explain.sizes import Size, sizes
from upscore.geometry import Geometry, Ints

__all__ = ["Explanation", "explain", "plain"]

LONGEST = 4096


@dataclass(frozen=True)
class Explanation:
    """One entry per axis, first axis first, where it is a tuple."""

    geometry: Geometry
    sizes: tuple[Size, ...]
    overlap: tuple[Overlap, ...]
    kernel: tuple[KernelChoice, ...]
    phases: tuple[tuple[PhaseRow, ...], ...]
    coordinates: tuple[Coordinates, ...]
    checkerboard: Checkerboard
    engine: Run
    definitions: Definitions | None
    """None where the case is too large to be shown."""

    def to_json(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers; fractions are strings such as "-1/4"."""
        found: dict[str, Any] = plain(self)
        return found


def explain(
    geometry: Geometry,
    input: Ints,  # noqa: A002
    weights: npt.ArrayLike | None = None,
    *,
    channels: tuple[int, int] | None = None,
    groups: int = 1,
) -> Explanation:
    """Explain a layer on an input of this size.

    ``weights`` is a weight (C_in, C_out / groups, *K) or a bare kernel (*K), for the checkerboard test and, in
    small cases, the numbers (those of the first channel pair; ones without weights). ``channels`` (in, out), by
    default those of the weights, and ``groups`` matter only for how the engine would run it.

    Raises:
        ArgumentError: sizes that do not fit, or more than 4096 taps or phases on an axis.
    """
    for name, values in (("kernel", geometry.kernel), ("stride", geometry.stride)):
        if max(values) > LONGEST:
            raise ArgumentError(name, f"at most {LONGEST} per axis, to explain it", max(values), f"{name}=4")
    size = tuple(s.input for s in sizes(geometry, input))
    judged = checkerboard(geometry, weights)
    worked_out = None
    if fits(geometry, size):
        counting = np.arange(1, 1 + np.prod(size)).reshape(size)
        kernel = None if weights is None else np.reshape(weights, (-1, *geometry.kernel))[0]
        worked_out = definitions(geometry, counting, kernel)
    if channels is None:
        shape = () if weights is None else np.asarray(weights).shape[: -geometry.rank]
        channels = (shape[0], shape[1] * groups) if len(shape) == 2 else (groups, groups)
    return Explanation(
        geometry,
        sizes(geometry, input),
        overlap(geometry),
        kernel_choice(geometry),
        phases(geometry),
        coordinates(geometry),
        judged,
        run(geometry, size, channels, groups),
        worked_out,
    )


def plain(found: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, fractions as strings, all the way down."""
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return {field.name: plain(getattr(found, field.name)) for field in dataclasses.fields(found)}
    if isinstance(found, (tuple, list)):
        return [plain(item) for item in found]
    return str(found) if isinstance(found, Fraction) else found
