"""The normal form: what a transposed convolution is, with every framework's dialect taken off.

Along one axis, with kernel ``k``, stride ``s``, dilation ``d`` and crop ``(lo, hi)``::

    transposed   y[i*s + t*d - lo] += x[i] * w[t]     for all i in [0, n), t in [0, k)
    size         m = (n - 1)*s + d*(k - 1) + 1 - lo - hi
    adjoint      x[i] = sum_t y[i*s + t*d - lo] * w[t]
    size         n = floor((m + lo + hi - d*(k - 1) - 1) / s) + 1

A negative ``lo`` or ``hi`` adds positions that no tap reaches; they hold the bias alone.
Everything here is exact integer and fraction arithmetic on the standard library.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from upscore.arguments import Ints, Pairs, integer, pairs, per_axis, rank_of
from upscore.coordinates import CoordinateMap
from upscore.errors import ArgumentError

__all__ = ["CoordinateMap", "Geometry", "Ints", "Pairs", "Phase", "Solution", "bilinear_kernel", "pairs", "per_axis"]


def bilinear_kernel(factor: int) -> tuple[int, int]:
    """The kernel size and padding that upsample by ``factor`` bilinearly: ``2f - f % 2`` and ``ceil((f - 1)/2)``.

    The sizes are those of Caffe's ``bilinear`` filler template (caffe/include/caffe/filler.hpp).

    >>> bilinear_kernel(2), bilinear_kernel(32), bilinear_kernel(3)
    ((4, 1), (64, 16), (5, 1))
    """
    f = integer("factor", factor, 1)
    return 2 * f - f % 2, f // 2


@dataclass(frozen=True)
class Phase:
    """The output positions ``y`` with ``(y + lo) mod s == residue`` and the taps they use.

    With ``q = (y + lo) // s``, tap ``taps[j]`` meets input ``q - shifts[j]``, on each axis alone.
    """

    residue: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]
    shifts: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """How many weights (per channel pair) one output of this phase uses."""
        product = 1
        for taps in self.taps:
            product *= len(taps)
        return product


@dataclass(frozen=True)
class Solution:
    """One answer of :meth:`Geometry.solve`."""

    geometry: Geometry
    bilinear: bool
    """Kernel and padding are those of the bilinear upsampling by the stride."""

    @property
    def padding(self) -> tuple[int, ...] | None:
        """PyTorch's and Caffe's symmetric ``padding``, or None where the crop cannot be said with one."""
        said = self.geometry.symmetric()
        return None if said is None else said[0]

    @property
    def output_padding(self) -> tuple[int, ...] | None:
        """PyTorch's ``output_padding`` (0 in Caffe), or None where the crop cannot be said with one."""
        said = self.geometry.symmetric()
        return None if said is None else said[1]


@dataclass(frozen=True, init=False)
class Geometry:
    """The normal form of a (transposed) convolution over N axes; immutable and hashable.

    Args:
        kernel: taps per axis.
        stride: output steps per input step, at least 1.
        dilation: output steps between taps, at least 1.
        crop: what is cut from the full output before and after: an int, one per axis, or a pair per axis.
        rank: number of axes, needed only when everything else is a single int (then 1 by default).

    Raises:
        ArgumentError: naming the argument that cannot work.

    >>> g = Geometry(kernel=(64, 64), stride=32)
    >>> g.output_size((16, 16)), g.adjoint_size((544, 544))
    ((544, 544), (16, 16))
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    crop: tuple[tuple[int, int], ...]

    def __init__(
        self, kernel: Ints, stride: Ints = 1, dilation: Ints = 1, crop: Pairs = 0, *, rank: int | None = None
    ) -> None:
        rank = integer("rank", rank_of(kernel, stride, dilation, crop) if rank is None else rank, 1)
        object.__setattr__(self, "kernel", per_axis("kernel", kernel, rank, least=1))
        object.__setattr__(self, "stride", per_axis("stride", stride, rank, least=1))
        object.__setattr__(self, "dilation", per_axis("dilation", dilation, rank, least=1))
        object.__setattr__(self, "crop", pairs("crop", crop, rank))

    @classmethod
    def from_padding(
        cls,
        kernel: Ints,
        *,
        stride: Ints = 1,
        padding: Pairs = 0,
        output_padding: Ints = 0,
        dilation: Ints = 1,
        rank: int | None = None,
    ) -> Geometry:
        """The geometry said as PyTorch says it: crop = (padding before, padding after - output_padding).

        Unlike ``crop``, ``padding`` and ``output_padding`` must not be negative, and ``output_padding``
        must be smaller than the stride or the dilation (torch.nn.ConvTranspose2d documentation).
        """
        rank = rank_of(kernel, stride, dilation, padding, output_padding) if rank is None else rank
        pads = pairs("padding", padding, rank, least=0)
        extra = per_axis("output_padding", output_padding, rank, least=0)
        crop = tuple((lo, hi - op) for (lo, hi), op in zip(pads, extra, strict=True))
        geometry = cls(kernel, stride, dilation, crop, rank=rank)
        for op, s, d in zip(extra, geometry.stride, geometry.dilation, strict=True):
            if op >= max(s, d):
                raise ArgumentError(
                    "output_padding",
                    f"less than the larger of stride {s} and dilation {d}",
                    op,
                    f"output_padding={max(s, d) - 1}, or output_size= for any size",
                )
        return geometry

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.kernel)

    @property
    def extent(self) -> tuple[int, ...]:
        """Positions that one stamped kernel spans per axis: ``d*(k - 1) + 1``."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def symmetric(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """``(padding, output_padding)`` as PyTorch has them, or None where it cannot say this crop."""
        said = []
        for (lo, hi), s, d in zip(self.crop, self.stride, self.dilation, strict=True):
            if lo < 0 or not 0 <= lo - hi < max(s, d):
                return None
            said.append((lo, lo - hi))
        return tuple(p for p, _ in said), tuple(op for _, op in said)

    def output_size(self, input: Ints) -> tuple[int, ...]:  # noqa: A002
        """The size of the transposed convolution's output, per axis.

        >>> Geometry(kernel=4, stride=2, crop=1).output_size(5)
        (10,)
        """
        n = per_axis("input", input, self.rank, least=1)
        sizes = []
        for size, s, e, (lo, hi) in zip(n, self.stride, self.extent, self.crop, strict=True):
            m = (size - 1) * s + e - lo - hi
            if m < 1:
                raise ArgumentError(
                    "padding",
                    f"a crop that leaves an output of at least 1 from an input of {size}",
                    f"{lo} before and {hi} after, which leaves {m}",
                    f"a crop of {(size - 1) * s + e - 1} in all",
                )
            sizes.append(m)
        return tuple(sizes)

    def adjoint_size(self, output: Ints) -> tuple[int, ...]:
        """The size of the ordinary (strided) convolution of an ``output``-sized array: floor, as usual.

        >>> Geometry(kernel=11, stride=4).adjoint_size(227)
        (55,)
        """
        m = per_axis("output", output, self.rank, least=1)
        sizes = []
        for size, s, e, (lo, hi) in zip(m, self.stride, self.extent, self.crop, strict=True):
            room = size + lo + hi - e
            if room < 0:
                raise ArgumentError(
                    "output",
                    f"a padded size of at least the kernel's extent {e}",
                    f"{size} + {lo} + {hi} = {size + lo + hi}",
                    f"a size of {e - lo - hi} or a padding of {-(-(e - size) // 2)}",
                )
            sizes.append(room // s + 1)
        return tuple(sizes)

    def with_output_size(self, input: Ints, output: Ints) -> Geometry:  # noqa: A002
        """This geometry with ``hi`` changed so that ``input`` gives exactly ``output``.

        What PyTorch's and TensorFlow's ``output_size``/``output_shape`` come to. Any size is accepted.
        """
        n = per_axis("input", input, self.rank, least=1)
        m = per_axis("output_size", output, self.rank, least=1)
        crop = tuple(
            (lo, (ni - 1) * s + e - lo - mi)
            for (lo, _), ni, mi, s, e in zip(self.crop, n, m, self.stride, self.extent, strict=True)
        )
        return Geometry(self.kernel, self.stride, self.dilation, crop)

    def axis_phases(self, axis: int) -> tuple[Phase, ...]:
        """The phases along one axis, by residue: ``s`` of them, some without taps when ``k < s``."""
        _listable("kernel", self.kernel[axis])
        _listable("stride", self.stride[axis])
        return _axis_phases(self.kernel[axis], self.stride[axis], self.dilation[axis])

    def phases(self) -> tuple[Phase, ...]:
        """Every phase: the product of the axes' phases, first axis slowest.

        >>> [p.count for p in Geometry(kernel=(3, 3), stride=2).phases()]
        [4, 2, 2, 1]
        """
        _listable("stride", math.prod(self.stride))
        found = []
        for axes in itertools.product(*(self.axis_phases(a) for a in range(self.rank))):
            residue = tuple(p.residue[0] for p in axes)
            found.append(Phase(residue, tuple(p.taps[0] for p in axes), tuple(p.shifts[0] for p in axes)))
        return tuple(found)

    def overlap(self, input: Ints | None = None) -> tuple[tuple[int, ...], ...]:  # noqa: A002
        """How many inputs feed each output position, per axis.

        Without ``input``: one count per phase, away from the borders. With it: one count per output
        position, borders included. On several axes the counts multiply.

        >>> Geometry(kernel=3, stride=2).overlap()
        ((2, 1),)
        >>> Geometry(kernel=3, stride=2).overlap(2)
        ((1, 1, 2, 1, 1),)
        """
        if input is None:
            return tuple(tuple(p.count for p in self.axis_phases(a)) for a in range(self.rank))
        sizes = per_axis("input", input, self.rank, least=1)
        _listable("input", max(self.output_size(sizes)))
        counts = []
        for axis, (n, m) in enumerate(zip(sizes, self.output_size(sizes), strict=True)):
            s, lo, phases = self.stride[axis], self.crop[axis][0], self.axis_phases(axis)
            counts.append(
                tuple(sum(0 <= (y + lo) // s - shift < n for shift in phases[(y + lo) % s].shifts[0]) for y in range(m))
            )
        return tuple(counts)

    def receptive_field(self) -> tuple[int, ...]:
        """The widest span of inputs that one output position of the transposed convolution sees, per axis.

        (For the adjoint, the ordinary convolution, it is :attr:`extent`.)

        >>> Geometry(kernel=64, stride=32).receptive_field()
        (2,)
        """
        spans = []
        for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True):
            period = s // math.gcd(s, d)  # taps this far apart meet the same phase, period*d/s inputs apart
            spans.append((k - 1) // period * (period * d // s) + 1)
        return tuple(spans)

    def coordinate_map(self) -> CoordinateMap:
        """Which input coordinate lies under the centre of an output one: ``(y + lo - d*(k-1)/2) / s``.

        >>> Geometry(kernel=4, stride=2, crop=1).coordinate_map()((0,))
        (Fraction(-1, 4),)
        """
        scale = tuple(Fraction(1, s) for s in self.stride)
        offset = tuple(
            Fraction(2 * lo - (e - 1), 2 * s) for (lo, _), e, s in zip(self.crop, self.extent, self.stride, strict=True)
        )
        return CoordinateMap(scale, offset)

    @classmethod
    def solve(
        cls,
        *,
        input: Ints,  # noqa: A002
        output: Ints,
        stride: Ints,
        dilation: Ints = 1,
        max_kernel: int | None = None,
    ) -> tuple[Solution, ...]:
        """Every kernel, smallest first, with which ``input`` becomes ``output`` at this stride.

        Axes that ask the same get the same kernel. Each kernel comes with the crop nearest to symmetric that
        reaches the size, the odd pixel cut before (what PyTorch says as ``output_padding=1``). Kernels smaller
        than the stride leave holes and are left out, unless ``max_kernel`` allows no others; kernels that would
        have to be padded with more empty positions than a stride are left out. ``max_kernel`` is by default
        twice the stride of an axis, or the smallest kernel that reaches the size if that is larger.

        >>> [(s.geometry.kernel, s.padding, s.bilinear) for s in Geometry.solve(input=8, output=16, stride=2)]
        [((2,), (0,), False), ((3,), (1,), False), ((4,), (1,), True)]
        """
        rank = rank_of(input, output, stride, dilation)
        n = per_axis("input", input, rank, least=1)
        m = per_axis("output", output, rank, least=1)
        s = per_axis("stride", stride, rank, least=1)
        d = per_axis("dilation", dilation, rank, least=1)
        most = None if max_kernel is None else integer("max_kernel", max_kernel, 1)
        # An axis asks for nothing but the size of a single input's stamp.
        asked = [(si, di, mi - (ni - 1) * si) for ni, mi, si, di in zip(n, m, s, d, strict=True)]
        kernels = {ask: _kernels(*ask, most) for ask in asked}
        if not all(kernels.values()):
            smallest = max(_least_kernel(*ask) for ask in asked)
            raise ArgumentError(
                "output",
                f"a size that stride {s} reaches from {n} with a kernel of at most {most}",
                m,
                f"output={tuple(ni * si for ni, si in zip(n, s, strict=True))}, or max_kernel={smallest}",
            )
        answers = math.prod(map(len, kernels.values()))
        if answers > _MOST_ANSWERS:
            smallest = max(r[0] for r in kernels.values())
            raise ArgumentError(
                "max_kernel", f"a bound that leaves at most {_MOST_ANSWERS} answers", answers, f"max_kernel={smallest}"
            )
        found = []
        for chosen in itertools.product(*kernels.values()):
            kernel_for = dict(zip(kernels, chosen, strict=True))
            kernel = tuple(kernel_for[ask] for ask in asked)
            totals = [di * (k - 1) + 1 - stamp for k, (_, di, stamp) in zip(kernel, asked, strict=True)]
            crop = tuple((0, t) if t < 0 else (t - t // 2, t // 2) for t in totals)
            marked = all(
                (k, lo, hi, di) == (*bilinear_kernel(si), bilinear_kernel(si)[1], 1)
                for k, (lo, hi), si, di in zip(kernel, crop, s, d, strict=True)
            )
            found.append(Solution(cls(kernel, s, d, crop), bilinear=marked))
        return tuple(sorted(found, key=lambda answer: (math.prod(answer.geometry.kernel), answer.geometry.kernel)))


_MOST_ANSWERS = 10_000
_LONGEST_LIST = 2**22


def _listable(name: str, count: int) -> None:
    """An error where a list of phases, taps or positions would only fill the memory."""
    if count > _LONGEST_LIST:
        raise ArgumentError(name, f"at most {_LONGEST_LIST} phases, taps or positions to list", count, f"{name}=2")


def _least_kernel(s: int, d: int, stamp: int) -> int:
    """The smallest kernel that covers ``stamp`` positions but for fewer than a stride (or a dilation)."""
    return max(1, -((max(s, d) - stamp) // d) + 1)


def _kernels(s: int, d: int, stamp: int, most: int | None) -> range:
    """The kernels of one axis that :meth:`Geometry.solve` answers with."""
    least = _least_kernel(s, d, stamp)
    unbroken = max(least, s)
    if most is None:
        return range(unbroken, max(2 * s, unbroken) + 1)
    return range(unbroken if most >= unbroken else least, most + 1)


@lru_cache(maxsize=256)
def _axis_phases(k: int, s: int, d: int) -> tuple[Phase, ...]:
    taps: list[list[int]] = [[] for _ in range(s)]
    for t in range(k):
        taps[t * d % s].append(t)
    return tuple(Phase((r,), (tuple(ts),), (tuple(t * d // s for t in ts),)) for r, ts in enumerate(taps))
