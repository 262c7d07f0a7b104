"""The size formula of a dialect with its numbers filled in, and the parameters of a dialect that reach a size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from upscore.dialects import get
from upscore.dialects.layer import Layer
from upscore.dialects.translation import RefusalError, Written
from upscore.geometry import Geometry, Ints, per_axis

__all__ = ["Answer", "SizeFormula", "size_formula", "solve"]


@dataclass(frozen=True)
class SizeFormula:
    """An output size as one system computes it."""

    system: str
    formula: str
    """In the system's names."""
    numbers: tuple[str, ...]
    """The same with numbers in it, one line per axis."""
    size: tuple[int, ...]

    def __str__(self) -> str:
        lines = [f"{self.system}: {self.formula}"]
        lines += [f"  {said} = {m}" for said, m in zip(self.numbers, self.size, strict=True)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Answer:
    """Parameters of a system that reach a size."""

    geometry: Geometry
    bilinear: bool
    """Kernel and crop are those of the bilinear upsampling by the stride."""
    written: Written


def size_formula(system: str, layer: Layer, input_size: Ints) -> SizeFormula:
    """The output size of a layer as ``system`` computes it.

    Raises:
        RefusalError: where the system cannot say the layer.

    >>> layer = Layer(Geometry(kernel=(64, 64), stride=32), c_in=21, c_out=21)
    >>> print(size_formula("caffe", layer, 16))
    Caffe: stride*(n - 1) + dilation*(kernel - 1) + 1 - 2*pad
      32*(16 - 1) + 1*(64 - 1) + 1 - 2*0 = 544
      32*(16 - 1) + 1*(64 - 1) + 1 - 2*0 = 544
    """
    dialect = get(system)
    formula, axes = dialect.formula(layer, input_size)
    return SizeFormula(
        dialect.SYSTEM, formula, tuple(_fill(formula, axis) for axis in axes), layer.output_size(input_size)
    )


def _fill(formula: str, numbers: dict[str, int]) -> str:
    def number(match: re.Match[str]) -> str:
        value = numbers[match[0]]
        return str(value) if value >= 0 else f"({value})"

    return re.sub(r"[a-z_]+", number, formula)


def solve(
    system: str,
    *,
    input: Ints,  # noqa: A002
    output: Ints,
    stride: Ints,
    dilation: Ints = 1,
    max_kernel: int | None = None,
    channels: int = 1,
) -> tuple[Answer, ...]:
    """Every square kernel with which ``system`` makes ``output`` from ``input``, smallest first.

    Like :meth:`Geometry.solve`, but where the amount to cut is odd, the odd position is cut on the side where the
    system cuts it.

    Raises:
        ArgumentError: where no kernel up to ``max_kernel`` reaches the size.
        RefusalError: where kernels reach it, but the system can say none of them.

    >>> answer = solve("caffe", input=16, output=512, stride=32)[-1]
    >>> answer.bilinear, answer.written.parameters["pad"]
    (True, [16])
    """
    rank = next((len(v) for v in (input, output, stride, dilation) if isinstance(v, Sequence)), 2)
    sizes = [per_axis(name, v, rank, least=1) for name, v in (("input", input), ("output", output), ("stride", stride))]
    found = Geometry.solve(
        input=sizes[0], output=sizes[1], stride=sizes[2], dilation=dilation, max_kernel=max_kernel
    )  # fmt: skip
    answers, refused = [], None
    for solution in found:
        g = solution.geometry
        mirrored = tuple((min(pair), max(pair)) if min(pair) >= 0 else pair for pair in g.crop)
        for crop in dict.fromkeys((g.crop, mirrored)):
            layer = Layer(Geometry(g.kernel, g.stride, g.dilation, crop), channels, channels)
            try:
                written = get(system).write(layer, input_size=sizes[0])
            except RefusalError as error:
                refused = refused or error
                continue
            answers.append(Answer(layer.geometry, solution.bilinear, written))
            break
    if not answers and refused is not None:
        raise refused
    return tuple(answers)
