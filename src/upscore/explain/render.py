"""An explanation for people: sections of plain sentences, tables only where they are clearer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from upscore.explain.definitions import Definitions
from upscore.explain.explanation import Explanation
from upscore.explain.grid import Grid
from upscore.explain.kernel import KernelChoice
from upscore.explain.overlap import Overlap
from upscore.explain.phases import PhaseRow
from upscore.explain.sizes import FORMULA, Size

__all__ = ["render"]

PHASES_SHOWN = 6
T = TypeVar("T")


def render(found: Explanation) -> RenderableType:
    """The whole explanation as something rich prints."""
    parts = [
        _section("Size", [f"m = {FORMULA}", *_per_axis(found.sizes, _size)]),
        _section("Overlap", _overlap(found)),
        _section(f"Why a kernel of {_times(k.kernel for k in found.kernel)}", _per_axis(found.kernel, _kernel)),
        _section("Phases: which weights make which output", _phases(found)),
        _section("Coordinates: which input lies under an output", _coordinates(found)),
        _section("Checkerboard", _checkerboard(found)),
        _section("How this machine runs it", _engine(found)),
    ]
    if found.definitions is None:
        small = "--input 2 --kernel 3 --stride 2"
        parts.append(_section("Four definitions", [f"shown in numbers and letters for small cases, such as {small}"]))
    else:
        parts.append(_definitions(found.definitions))
    return Group(*parts)


def _section(title: str, lines: Iterable[str]) -> RenderableType:
    return Group(Text(title, "bold"), *(_indented(Text(line)) for line in lines), Text())


def _indented(shown: RenderableType) -> RenderableType:
    return Padding(shown, (0, 0, 0, 2), expand=False)


def _per_axis(items: Sequence[T], describe: Callable[[T], Sequence[str]]) -> list[str]:
    """The lines of every axis; axes about which the same is to be said share them."""
    lines = []
    for described, axes in itertools.groupby(range(len(items)), lambda axis: describe(items[axis])):
        named = [str(axis) for axis in axes]
        if len(items) == 1:
            prefix = ""
        elif len(named) == len(items):
            prefix = "each axis: "
        else:
            prefix = f"ax{'i' if len(named) == 1 else 'e'}s {' and '.join(named)}: "
        lines += [prefix + described[0], *(" " * len(prefix) + line for line in described[1:])]
    return lines


def _times(numbers: Iterable[int]) -> str:
    values = list(numbers)
    return str(values[0]) if len(set(values)) == 1 else " x ".join(map(str, values))


def _range(counts: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(set(counts))))


def _count(axis: Overlap) -> str:
    return _range(axis.counts) if axis.even else f"({_range(axis.counts)})"


def _size(size: Size) -> list[str]:
    return [size.filled_in, f"the convolution with the same numbers leads back: {size.output} -> {size.back}"]


def _overlap(found: Explanation) -> list[str]:
    axes: tuple[Overlap, ...] = found.overlap
    products = sorted({math.prod(counts) for counts in itertools.product(*(set(o.counts) for o in axes))})
    under = " x ".join(_count(o) for o in axes)
    total = math.prod(found.geometry.kernel)
    return [
        f"away from the borders an output has {under} inputs under it: {_range(products)} of the {total} taps",
        f"it sees a span of {' x '.join(str(o.receptive_field) for o in axes)} inputs (the receptive field)",
    ]


def _kernel(choice: KernelChoice) -> list[str]:
    k, s = choice.kernel, choice.stride
    if s == 1:
        return ["stride 1 places a stamp at every position: no kernel leaves holes"]
    if choice.touched < s:
        lines = [f"a kernel of {k} touches only {choice.touched} of every {s} rows; the others hold the bias alone"]
        lines.append(f"no holes from a kernel of {s} on" if choice.least else "stride and dilation share a factor")
    else:
        lines = [f"{k} reaches every row, because it is not smaller than the stride {s}"]
        lines.append(f"a kernel of {choice.smaller} would touch only {choice.smaller_touches} of every {s} rows")
    formula = f"{choice.bilinear} = 2*{s}" + (" - 1" if s % 2 else "")
    lines.append(f"{formula}, padding {choice.bilinear_padding}: the kernel that upsamples bilinearly by {s}")
    if choice.kernel == choice.bilinear and choice.dilation == 1 and not choice.is_bilinear:
        lines.append("with another padding, as here, it does the same, shifted")
    return lines


def _phases(found: Explanation) -> list[str]:
    lines = _per_axis(found.phases, _axis_phases)
    if len(found.phases) > 1:
        count = math.prod(found.geometry.stride)
        lines.append(
            f"the axes multiply: {count} phases, each a stride-1 convolution of its own; no zero is multiplied"
        )
    return lines


def _axis_phases(rows: Sequence[PhaseRow]) -> list[str]:
    ordered = sorted(rows, key=lambda row: row.first)
    if len(ordered) <= PHASES_SHOWN:
        return [row.formula for row in ordered]
    left_out = len(ordered) - PHASES_SHOWN + 1
    shown = [row.formula for row in (*ordered[: PHASES_SHOWN - 2], ordered[-1])]
    return [*shown[:-1], f"... {left_out} more like these (--json lists all)", shown[-1]]


def _coordinates(found: Explanation) -> list[str]:
    lines = _per_axis(found.coordinates, lambda axis: [axis.formula])
    if all(axis.aligned for axis in found.coordinates):
        lines.append("pixels keep their places: this is where resizing by the stride puts them")
    else:
        lines.append("a network that adds or compares this output with another path has to crop the difference")
    return lines


def _checkerboard(found: Explanation) -> list[str]:
    board, geometry = found.checkerboard, found.geometry
    percent = "" if board.unevenness is None else f"{board.unevenness:.2g} of the answer to a flat input alternates"
    counts = " x ".join(_count(o) for o in found.overlap)
    if board.verdict == "holes":
        return ["holes: a grid of outputs that no tap reaches, whatever the weights are"]
    if board.verdict == "unequal overlap":
        lines = [f"likely before training: the phases have {counts} taps, and so unequal gain"]
        if all(math.gcd(s, d) == 1 for s, d in zip(geometry.stride, geometry.dilation, strict=True)):
            even = (-(-k // s) * s for k, s in zip(geometry.kernel, geometry.stride, strict=True))
            lines.append(
                f"a kernel that is a multiple of the stride, such as {_times(even)}, gives all the same number"
            )
        return [*lines, "--weights FILE judges a trained layer"]
    if board.verdict == "equal overlap":
        return [f"not by construction: all phases have {counts} taps", "--weights FILE judges a trained layer"]
    if board.verdict == "even":
        return [f"none: all phases have the same gain ({percent})"]
    return [
        f"{board.verdict}: the phases have unequal gain ({percent})",
        *_strongest(board.gains or (), geometry.stride),
    ]


def _engine(found: Explanation) -> list[str]:
    c_in, c_out = found.engine.channels
    grouped = f" in {found.engine.groups} groups" if found.engine.groups > 1 else ""
    return [f"{c_in} -> {c_out} channels{grouped}, float32", *found.engine.why.split("; ")]


def _strongest(gains: Sequence[float], stride: Sequence[int]) -> list[str]:
    """The two ends of the scale, named by their residues."""
    residues = list(itertools.product(*map(range, stride)))
    low, high = (pick(range(len(gains)), key=gains.__getitem__) for pick in (min, max))
    return [f"phase {residues[high]} answers with {gains[high]:.3g}, phase {residues[low]} with {gains[low]:.3g}"]


def _definitions(found: Definitions) -> RenderableType:
    def row(pictures: Iterable[RenderableType]) -> Table:
        table = Table.grid(padding=(0, 3, 0, 0))
        table.add_row(*pictures)
        return table

    given = [("input", found.input), ("weights", found.weights)]
    named = [("in letters", found.input_letters), ("in letters", found.weight_letters)]
    panels = [Panel.fit(Grid(rows), title=title) for pair in zip(given, named, strict=True) for title, rows in pair]
    stuffed = Group(Grid(found.stuffed), Text("\nunder the\nflipped kernel\n"), Grid(found.flipped))
    kernels = [row(map(Grid, found.phase_kernels[i : i + 4])) for i in range(0, len(found.phase_kernels), 4)]
    phases = Group(*kernels, Text("\nphase of each output\n"), Grid(found.phase_outputs))
    return Group(
        Text("Four definitions", "bold"),
        Columns(panels),
        Panel.fit(
            Columns([Padding(Grid(stamp), (0, 2, 1, 0)) for stamp in found.stamps]),
            title="scatter: one stamp per input, added",
        ),
        Columns(
            [
                Panel.fit(stuffed, title="zero-stuffing"),
                Panel.fit(Grid(found.matrix), title="matrix C^T"),
                Panel.fit(phases, title="phases"),
            ]
        ),
        Text("all four give, in letters"),
        _indented(Grid(found.output_letters)),
        Text(f"and in numbers (largest difference between the four: {found.disagreement:.1g})"),
        _indented(Grid(found.output)),
    )
