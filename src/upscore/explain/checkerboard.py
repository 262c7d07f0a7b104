"""Will the layer leave a checkerboard? It does where its phases have unequal gain.

A flat input should give a flat output. Away from the borders an output of phase ``p`` is then the input times the
gain of that phase, the sum of the phase's taps; so a flat area stays flat exactly if all phases have the same gain.
(Odena, Dumoulin and Olah, "Deconvolution and Checkerboard Artifacts", Distill 2016, observe the unequal overlap
that makes it likely; the gain of the phases is what a trained layer does with it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from upscore.errors import ArgumentError
from upscore.geometry import Geometry

__all__ = ["Checkerboard", "checkerboard", "phase_gains"]

EVEN, FAINT = 1e-5, 1e-2


@dataclass(frozen=True)
class Checkerboard:
    """The verdict on a layer, from its geometry and, where there are weights, from these."""

    equal_overlap: bool
    """All phases have the same number of taps: an untrained layer has no preferred phase."""
    unevenness: float | None
    """Of the response to flat inputs, the part (2-norm, over all channel pairs) that alternates: 0 none, 1 all.

    None, as ``gains``, without weights or where there are holes.
    """
    gains: tuple[float, ...] | None
    """By phase, first axis slowest: the 2-norm over the channel pairs of the sums of the phase's taps."""
    verdict: Literal["holes", "even", "faint", "visible", "equal overlap", "unequal overlap"]
    """``even``, ``faint``, ``visible`` judge weights (limits 1e-5 and 1e-2); the others the geometry alone."""


def checkerboard(geometry: Geometry, w: npt.ArrayLike | None = None) -> Checkerboard:
    """Judge a layer; ``w`` is its weight (C_in, C_out / groups, *K) or a bare kernel (*K).

    >>> from upscore.filters import bilinear
    >>> checkerboard(Geometry((3, 3), 2)).verdict, checkerboard(Geometry((4, 4), 2), bilinear(2)).verdict
    ('unequal overlap', 'even')

    Raises:
        ArgumentError: a weight whose shape is not that of the geometry, or that is not finite.
    """
    counts = geometry.overlap()
    equal = all(len(set(c)) == 1 for c in counts)
    if any(0 in c for c in counts):
        verdict: Literal["holes", "equal overlap", "unequal overlap"] = "holes"
    else:
        verdict = "equal overlap" if equal else "unequal overlap"
    if w is None:
        return Checkerboard(equal, None, None, verdict)
    w = _weight(geometry, w)
    if verdict == "holes":  # and nothing that weights could do about it
        return Checkerboard(equal, None, None, verdict)
    gains = phase_gains(geometry, w)
    by_phase = gains.reshape(-1, *gains.shape[geometry.rank :])
    whole = float(np.linalg.norm(by_phase))
    unevenness = float(np.linalg.norm(by_phase - by_phase.mean(axis=0))) / whole if whole else 0.0
    strengths = tuple(float(np.linalg.norm(gain)) for gain in by_phase)
    judged: Literal["even", "faint", "visible"] = "visible"
    if unevenness <= FAINT:
        judged = "even" if unevenness <= EVEN else "faint"
    return Checkerboard(equal, unevenness, strengths, judged)


def phase_gains(geometry: Geometry, w: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The sum of the taps of every phase: (*stride, C_in, C_out / groups), for a bare kernel (*stride, 1, 1).

    >>> phase_gains(Geometry(3, 2), [1, 2, 5]).ravel()
    array([6., 2.])
    """
    w = _weight(geometry, w)
    for axis in range(geometry.rank):
        sums = [w.take(phase.taps[0], axis=2).sum(axis=2) for phase in geometry.axis_phases(axis)]
        w = np.stack(sums, axis=-1)  # the summed axis leaves at the front, its phases come in at the back
    return np.moveaxis(w, (0, 1), (-2, -1))


def _weight(geometry: Geometry, w: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``w`` as a finite weight that fits the geometry; a bare kernel is the weight of one channel pair."""
    w = np.asarray(w, np.float64)
    if w.shape == geometry.kernel:
        w = w[None, None]
    if w.ndim != geometry.rank + 2 or w.shape[2:] != geometry.kernel or not w.size:
        expected = f"a kernel {geometry.kernel} or a weight (C_in, C_out/groups, *{geometry.kernel})"
        raise ArgumentError("weights", expected, f"shape {w.shape}", f"shape {(1, 1, *geometry.kernel)}")
    if not np.isfinite(w).all():
        raise ArgumentError("weights", "finite numbers", "nan or infinity", "a checkpoint from before it diverged")
    return w
